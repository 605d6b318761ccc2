"""Checkpoints of a recovery run: safetensors and JSON, whole or not there at all.

``<folder>/step-00000500/`` holds ``model.safetensors`` (the parameters that are trained, and buffers),
``ema.safetensors``, ``optimizer.safetensors`` (AdamW's moments by parameter name), ``best.safetensors`` (the averages
of the best evaluation, where training may stop early), ``lengths.safetensors`` (those of which other lengths are made,
where any are asked for) and ``state.json`` (step, losses, counters, and the fingerprint of what was run, with that of
the weights that stay as they are). It is written under a temporary name, flushed and renamed. There is no generator
state: see `pruning.recovery.batches`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.files import write_errors, written_whole
from pruning.models.stored import stored_tensors, weights_digest
from pruning.recovery.lengths import Lengths
from pruning.settings import Recover, knobs_of
from pruning.store import changes_in_words

logger = logging.getLogger(__name__)

FORMAT = 1
_PREFIX = "step-"
_TENSOR_FILES = ("model", "ema", "optimizer")
_BEST, _LENGTHS = "best", "lengths"


@dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes:
        student: The unwrapped student.
        ema: The averages of what is trained of it, in the order of `trained`.
        optimizer: AdamW over the trainable parameters.
        scaler: The gradient scaler of float16, or None.
        losses: Loss of every step so far; its length is the number of steps taken.
        seconds: Seconds spent training so far, checkpoints, loading and evaluations left out.
        evaluations: (steps taken, held-out loss) of every evaluation so far.
        best: Averages of the evaluation of the lowest loss by name, on the CPU, where they may be the result.
        lengths: Averages from which others are made at the end, or None.
    """

    student: nn.Module
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    scaler: Any = None
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    lengths: Lengths | None = None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained of the student, by name."""
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return len(self.losses)


def write_checkpoint(folder: Path, state: TrainingState, fingerprint: Mapping[str, Any], keep: int) -> Path:
    """Write `state` to a new checkpoint in `folder`, then remove all but the newest `keep`; return its path.

    Raises:
        PruningError: If a weight is not finite, or the folder is full or cannot be written; earlier checkpoints
            are left whole.
    """
    tensors = _tensors(state)
    for name, tensor in [*tensors["model"].items(), *tensors["ema"].items()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PruningError(
                f"recovery: parameter {name!r} holds NaN or infinity after step {state.step}; no checkpoint of it is "
                f"written, and earlier ones in {folder} are whole. Lower the learning rate or set grad_clip"
            )
    content = {
        "format": FORMAT,
        "step": state.step,
        "losses": state.losses,
        "seconds": state.seconds,
        "evaluations": state.evaluations,
        "ema_step": state.ema.optimization_step,
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "best": state.best is not None,
        "lengths": state.lengths is not None,
        "fingerprint": dict(fingerprint),
    }
    final = folder / f"{_PREFIX}{state.step:08d}"
    with write_errors("recovery checkpoint", folder, "Earlier checkpoints there are whole"):
        with written_whole(final, flush=True) as temporary:
            temporary.mkdir(parents=True)
            for part, entries in tensors.items():
                save_file(entries, temporary / f"{part}.safetensors")
            (temporary / "state.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        for path in _checkpoints(folder)[:-keep]:
            shutil.rmtree(path)
    return final


def resume(folder: Path, state: TrainingState, fingerprint: Mapping[str, Any]) -> int:
    """Load the newest whole checkpoint in `folder` into `state`.

    A checkpoint that cannot be read whole is passed over with a warning.

    Returns:
        Its step; 0 if there is none.

    Raises:
        PruningError: If a checkpoint is of another configuration, naming what differs.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            content = json.loads((path / "state.json").read_bytes())
            if content["format"] != FORMAT or len(content["losses"]) != content["step"]:
                raise ValueError("state.json is of an unknown format")
            parts = (*_TENSOR_FILES, *(part for part in (_BEST, _LENGTHS) if content.get(part)))
            tensors = {part: load_file(path / f"{part}.safetensors") for part in parts}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("recovery: checkpoint %s is passed over: %s", path, error)
            continue
        if words := changes_in_words(content["fingerprint"], fingerprint):
            raise PruningError(
                f"recovery: {path} was made with another configuration: {words}. "
                "Use an empty folder, delete these checkpoints, or go back to the old settings"
            )
        _restore(state, content, tensors)
        return state.step
    return 0


def clear_temporaries(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`."""
    for path in folder.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def checkpoint_bytes(student: nn.Module) -> int:
    """Return about how large a checkpoint of `student` is: what is trained, averages and two moments, and buffers."""
    trained = sum(p.numel() * 4 for p in student.parameters() if p.requires_grad)
    return 4 * trained + sum(buffer.nbytes for buffer in student.buffers())


def fingerprint(
    settings: Recover,
    seed: int,
    student: nn.Module,
    teacher: nn.Module | None,
    seen: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe what is run, in JSON types: the settings, the models' weights, and what the batches are made of.

    Weights are identified by a hash over up to 256 evenly spaced entries of every tensor. When to stop early does not
    change the course; with a constant learning rate the number of steps does not either, so that such a run can be
    prolonged.
    """
    free = {knob.key for knob in knobs_of(Recover) if knob.neutral} | {"enabled", "max_seconds"}
    free |= {"steps"} if settings.schedule == "constant" else set()
    course = {**asdict(settings), "warmup_steps": settings.warmup, "seed": seed}
    described = {
        "settings": {key: value for key, value in course.items() if key not in free},
        "student": weights_digest(student),
        "teacher": None if teacher is None else weights_digest(teacher),
        **seen,
    }
    return json.loads(json.dumps(described, default=str))


def _tensors(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a checkpoint by file, then by name, on the CPU."""
    trained = state.trained
    moments = {
        f"{name}.{key}": value.clone() if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in trained.items()
        for key, value in state.optimizer.state.get(parameter, {}).items()
    }
    found = {
        "model": _changing(state),
        "ema": dict(zip(trained, state.ema.shadow_params, strict=True)),
        "optimizer": moments,
        **({_BEST: state.best} if state.best is not None else {}),
        **({_LENGTHS: state.lengths.named()} if state.lengths is not None else {}),
    }
    return {
        part: {name: tensor.detach().cpu().contiguous() for name, tensor in entries.items()}
        for part, entries in found.items()
    }


def _changing(state: TrainingState) -> dict[str, Tensor]:
    """Return what training changes of the student by name: trained parameters and stored buffers."""
    held = {name for name, p in state.student.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in stored_tensors(state.student).items() if name not in held}


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    return sorted(folder.glob(_PREFIX + 8 * "[0-9]"))


@torch.no_grad()
def _restore(
    state: TrainingState, content: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    named = state.trained
    for name, tensor in _changing(state).items():
        tensor.copy_(tensors["model"][name])
    for name, shadow in zip(named, state.ema.shadow_params, strict=True):
        shadow.copy_(tensors["ema"][name])
    for name, value in tensors["optimizer"].items():
        parameter_name, key = name.rsplit(".", 1)
        parameter = named[parameter_name]
        is_count = value.ndim == 0 and not value.is_floating_point()  # which AdamW8bit counts its steps in
        state.optimizer.state[parameter][key] = int(value) if is_count else value.to(parameter.device)
    state.ema.optimization_step = content["ema_step"]
    if state.scaler is not None and content["scaler"] is not None:
        state.scaler.load_state_dict(content["scaler"])
    state.losses, state.seconds = content["losses"], content["seconds"]
    state.evaluations = [(step, loss) for step, loss in content["evaluations"]]
    state.best = dict(tensors[_BEST]) if _BEST in tensors else None
    for name, average in state.lengths.named().items() if state.lengths is not None else ():
        average.copy_(tensors[_LENGTHS][name])
