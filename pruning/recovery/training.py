"""Training a pruned denoiser back: fine-tuning, or distillation of the dense model's output, on accelerate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import nn

from pruning.errors import PruningError
from pruning.files import check_writable
from pruning.recovery.batches import Batches, Share
from pruning.recovery.checkpoints import (
    TrainingState,
    checkpoint_bytes,
    clear_temporaries,
    fingerprint,
    resume,
)
from pruning.recovery.features import Features, pairs_by_path
from pruning.recovery.held_out import HeldOut, best_of
from pruning.recovery.labels import hold_label_embeddings
from pruning.recovery.lengths import Lengths
from pruning.recovery.loop import RecoveryProgress, Training, Validate, losses_of_lengths, take, train
from pruning.recovery.objective import call
from pruning.recovery.optimizers import check_optimizer, optimizer_of
from pruning.recovery.parts import trained_parts
from pruning.recovery.tracking import begin, end, tracked_by
from pruning.recovery.twins import Twin
from pruning.settings import Recover

logger = logging.getLogger(__name__)

_DATA_PARALLEL = (
    DistributedType.NO,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)


Progress = Callable[[RecoveryProgress], None]

AVERAGES = "averages"
"""Folder, beside the checkpoints, of averages from which those of other lengths are made."""

HALF = 0.5
"""Weight of distillation where the data say what to answer and nothing else is asked."""


@dataclass(frozen=True)
class RecoveryResult:
    """What a recovery run did, earlier parts of a resumed run included.

    Attributes:
        losses: (step, loss) of every optimiser step, steps counted from 1.
        images_per_second: Images trained on a second, checkpoints left out.
        steps: Optimiser steps taken; fewer than asked only where `max_seconds` or `early_stop` ended the run.
        resumed_from: Step of the checkpoint that this process started from; 0 for a fresh start.
        seconds: Seconds spent training, checkpoints and evaluations left out.
        evaluations: (steps taken, held-out loss) of every evaluation.
        best_step: With `early_stop`, steps after which the averages by `ema_decay` were the best.
        lengths: With `ema_lengths`, the held-out loss by length, and that of the averages by `ema_decay`; the lowest
            are the result.
    """

    losses: list[tuple[int, float]]
    images_per_second: float
    steps: int
    resumed_from: int
    seconds: float
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None
    lengths: dict[str, float] | None = None

    @property
    def average(self) -> str | None:
        """Name of the average that was taken of those of several lengths, if there were any."""
        return min(self.lengths, key=self.lengths.__getitem__) if self.lengths else None


def checked(settings: Recover, *, has_targets: bool) -> Recover:
    """Return the settings with the weight of distillation resolved.

    Raises:
        PruningError: For settings out of range, or a data loss without targets.
    """
    settings.check("recovery")
    weight = settings.distill_weight
    if weight is None:
        weight = HALF if has_targets else 1.0
    if weight < 1 and not has_targets:
        raise PruningError(
            f"recovery: distill_weight is {weight:g}, but recorded points have no target, only the dense model's own "
            "answer; set it to 1 or null, or train on the recorded ends, noised anew"
        )
    return replace(settings, distill_weight=weight)


def train_back(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Callable[[Share], Batches],
    seen: Mapping[str, Any],
    settings: Recover,
    seed: int,
    folder: str | Path | None,
    device: str | None,
    progress: Progress | None,
    *,
    pairs: Sequence[Twin] | None = None,
    held_out: HeldOut | None = None,
    validate: Validate | None = None,
    logs: str | Path | None = None,
) -> RecoveryResult:
    """Train `student` in place on batches of any source; see `recover_images`.

    Args:
        student: The pruned denoiser.
        teacher: The dense denoiser.
        batches: (what this process trains on, all null resolved) -> the batches.
        seen: What the batches are made of, in JSON types, for checkpoints.
        settings: As `checked` returns them.
        seed: Of every draw.
        folder: Where checkpoints go.
        device: Kind of device.
        progress: Called after every step.
        pairs: Blocks whose outputs are compared, where `settings.feature_weight` is above 0; None: those of the same
            paths.
        held_out: What evaluations show, where `settings.eval_every` is above 0.
        validate: Called at every evaluation on process 0.
        logs: Where a tracker may write.
    """
    _check_models(student, teacher, settings)
    check_optimizer(settings)
    accelerator = _accelerator(settings, device, None if logs is None else Path(logs))
    settings = replace(settings, mixed_precision=accelerator.mixed_precision)
    used_teacher = teacher if settings.distill_weight or settings.feature_weight else None
    features = None
    if used_teacher is not None and settings.feature_weight:
        pairs = pairs_by_path(student, used_teacher) if pairs is None else pairs
        seen, features = {**seen, "features": [vars(pair) for pair in pairs]}, Features(pairs)
    place = Path(folder) if folder is not None else None
    identity = fingerprint(settings, seed, student, used_teacher, seen)
    where = accelerator.device, accelerator.process_index, accelerator.num_processes
    share = Share(settings, seed, *where)

    def answer() -> Any:  # the same on all processes
        with closing(batches(replace(share, rank=0))(0, 1)) as first:
            return call(student, next(first).call)

    with (
        _training(student, used_teacher, accelerator.device),
        _checkpointed(student, settings),
        trained_parts(student, settings, seed, answer),
        features.watched(student, used_teacher) if features and used_teacher else nullcontext(),
    ):
        if place is not None and accelerator.is_main_process:
            check_writable("recovery checkpoints", place, checkpoint_bytes(student))
            clear_temporaries(place)
        accelerator.wait_for_everyone()
        model, optimizer, state = _prepared(student, settings, accelerator)
        if settings.ema_lengths and held_out is not None:
            averages = None if place is None else place / AVERAGES
            state.lengths = Lengths.of(state.trained, averages, writes=accelerator.is_main_process)
        run = Training(
            batches(share),
            share,
            accelerator,
            model,
            used_teacher,
            optimizer,
            state,
            place,
            identity,
            features,
            held_out=None if held_out is None else held_out.of(share),
            validate=validate,
        )
        resumed_from = resume(place, state, identity) if place is not None else 0
        if resumed_from and accelerator.is_main_process:
            logger.info("%-9s resumed at step %d of %d", "recover", resumed_from, settings.steps)
        begin(accelerator, settings)
        lengths = None
        try:
            train(run, progress)
            if state.lengths is not None:
                lengths = losses_of_lengths(run)
        finally:
            end(accelerator)
        state.ema.copy_to(state.trained.values())
        if state.best is not None:
            take(state.best, state.trained)
    student.eval()
    speed = state.step * settings.batch_size / state.seconds if state.seconds > 0 else 0.0
    best = best_of(state.evaluations) if settings.early_stop else None
    return RecoveryResult(
        list(enumerate(state.losses, start=1)),
        speed,
        state.step,
        resumed_from,
        state.seconds,
        state.evaluations,
        None if best is None else state.evaluations[best][0],
        lengths,
    )


def _check_models(student: nn.Module, teacher: nn.Module | None, settings: Recover) -> None:
    if not any(p.requires_grad for p in student.parameters()):
        raise PruningError(
            "recovery: no parameter of the student requires a gradient; call student.requires_grad_(True)"
        )
    if settings.distill_weight == 0:
        config = getattr(student, "config", {})
        if config.get("in_channels") and config.get("out_channels") == 2 * config["in_channels"]:
            logger.warning(
                "recovery: this model also predicts a variance, which the data loss does not train; "
                "set distill_weight above 0 to keep it, or sample with a scheduler of fixed variance"
            )
        if not settings.feature_weight:
            return
    if teacher is None:
        asked = "distill_weight" if settings.distill_weight else "feature_weight"
        raise PruningError(
            f"recovery: {asked}={getattr(settings, asked)} needs the dense model as teacher; "
            f"pass it, or set {asked} to 0"
        )
    mine = {id(p) for p in student.parameters()}
    if any(id(p) in mine for p in teacher.parameters()):
        raise PruningError(
            "recovery: student and teacher share parameters; load the dense model a second time"
        )


def check_split(settings: Recover, processes: int) -> None:
    """Raise PruningError unless a training batch can be split over processes and micro-batches."""
    parts = settings.gradient_accumulation * processes
    if settings.batch_size % parts:
        raise PruningError(
            f"recover.batch_size: {settings.batch_size} must be a multiple of gradient_accumulation x processes = "
            f"{settings.gradient_accumulation} x {processes} = {parts}"
        )


def _accelerator(settings: Recover, device: str | None, logs: Path | None) -> Accelerator:
    """Make the Accelerator and check that this run fits it."""
    tracked = tracked_by(settings, logs)
    try:
        accelerator = Accelerator(
            mixed_precision=settings.mixed_precision,
            cpu=device == "cpu",
            gradient_accumulation_steps=settings.gradient_accumulation,
            **tracked,
        )
    except ValueError as error:
        raise PruningError(
            f"recovery: accelerate refuses mixed_precision={settings.mixed_precision!r} on device {device!r}: {error}"
        ) from error
    if accelerator.distributed_type not in _DATA_PARALLEL:
        raise PruningError(
            f"recovery: {accelerator.distributed_type.value} is not supported; "
            "launch one process, or data-parallel ones (`accelerate launch --multi_gpu`)"
        )
    found = accelerator.device.type
    if device is not None and torch.device(device).type != found:
        raise PruningError(
            f"recovery: device={device!r} asked, but accelerate runs on {found!r} here; ask for {found!r}"
        )
    check_split(settings, accelerator.num_processes)
    return accelerator


@contextmanager
def _training(student: nn.Module, teacher: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Put the models into training order, and undo what accelerate and training leave on them and in torch."""
    before = {name: vars(student)[name] for name in _WRAPPED if name in vars(student)}
    teaching = teacher is not None and teacher.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            student.to(device)
            student.float()
            student.train()
            hold_label_embeddings(student)
            if teacher is not None:
                teacher.to(device).eval()
            yield
        finally:
            for name in _WRAPPED:
                vars(student).pop(name, None)
            vars(student).update(before)
            student.zero_grad(set_to_none=True)
            if teacher is not None:
                teacher.train(teaching)


def check_checkpointing(model: nn.Module | type, settings: Recover) -> None:
    """Raise PruningError if blocks of the model, or of models of that class, cannot run again where that is asked."""
    if settings.gradient_checkpointing and not getattr(model, "_supports_gradient_checkpointing", False):
        cls = model if isinstance(model, type) else type(model)
        raise PruningError(
            f"recovery: gradient_checkpointing: {cls.__name__} has no method for it; set it to false"
        )


@contextmanager
def _checkpointed(student: Any, settings: Recover) -> Iterator[None]:
    """Let blocks run again in the backward pass, if asked."""
    check_checkpointing(student, settings)
    if not settings.gradient_checkpointing or student.is_gradient_checkpointing:
        yield
        return
    student.enable_gradient_checkpointing()
    try:
        yield
    finally:
        student.disable_gradient_checkpointing()


_WRAPPED = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What accelerate hangs on a prepared model."""


def _prepared(
    student: nn.Module, settings: Recover, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer, TrainingState]:
    """Return the student and its optimiser as accelerate prepares them, and what changes while training."""
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = optimizer_of(trained, settings, accelerator.device)
    model = accelerator.prepare_model(student)
    prepared = accelerator.prepare_optimizer(optimizer)
    ema = EMAModel(trained, decay=settings.ema_decay, foreach=True)
    return model, prepared, TrainingState(student, ema, optimizer, accelerator.scaler)
