"""Recordings that people ask for by themselves: those of a recipe, in its store, or of any pipeline, in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pruning import models
from pruning.data.prompts import ALL, is_text, open_prompts
from pruning.errors import PruningError, shown
from pruning.recording import RecordedCalls, record
from pruning.sampling import PixelPipeline, check_arguments
from pruning.stages.preflight import preflight, usable_device
from pruning.stages.progress import Bars, without_library_bars
from pruning.stages.run import Run, sampling_class
from pruning.stages.showing import is_recorded, recorded, training_samples

GIVEN = ("prompt", "class_labels")
"""What samples bring to a call, in the order in which a pipeline is asked for it."""


def record_recipe(run: Run, *, held_out: bool = False) -> RecordedCalls:
    """Return the recorded calls that a recipe's stages read, made now or found in its store.

    Args:
        run: The run.
        held_out: Those that evaluation reads; else those of calibration and recovery.

    Raises:
        PruningError: If the recipe reads none, and for all that a run is refused for.
    """
    wanted = is_recorded(run) * run.recipe.evaluate.denoising_samples if held_out else training_samples(run)
    if not wanted:
        who = "evaluation" if held_out else "calibration and recovery"
        raise PruningError(
            f"calibrate.provider: with {run.recipe.calibrate.provider!r} {who} read images of the data, so that there "
            "is nothing to record; use calibrate.provider=sampling or renoised"
        )
    with run.workspace.held(), without_library_bars(quiet=not run.bars.enabled):
        preflight(run, [])
        run.workspace.claim()
        with run.bars.lines("recording"):
            return recorded(run, wanted, held_out=held_out)


def record_source(
    source: str,
    folder: Path,
    *,
    prompts: str | None = None,
    labels: Sequence[int] | None = None,
    samples: int | None = None,
    call: Mapping[str, Any] | None = None,
    points: int | None = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "auto",
    progress: bool = True,
) -> RecordedCalls:
    """Record the pipeline at a model source into a folder; all that needs no weights is checked before they are read.

    Args:
        source: A folder, ``bundled:…`` or a hub id of a pipeline, or of a bare denoiser of pixels.
        folder: Where to.
        prompts: A text file, a prompt a line.
        labels: Classes.
        samples: How many, of prompts and labels those in turn; None: each once.
        call: Arguments of the pipeline's call.
        points: As for `record`.
        seed: As for `record`.
        dtype: Type of the weights.
        device: ``auto``, ``cpu``, ``cuda`` or another name of PyTorch.
        progress: Draw bars.

    Raises:
        PruningError: If the pipeline does not take what it is asked with, and as for `record`.
    """
    cls, call = sampling_class(source), dict(call or {})
    inputs = _inputs(cls, prompts, labels, samples)
    check_arguments(cls, call, tuple(inputs[0]))
    where = usable_device(device, "--device")
    bars = Bars(progress)
    with without_library_bars(quiet=not progress), bars.lines("recording"):
        return record(
            _load(source, cls, dtype, where),
            inputs,
            folder,
            call=call,
            seed=seed,
            points=points,
            progress=lambda done, total: bars("recording", done, total),
        )


def _load(source: str, cls: type, dtype: torch.dtype, device: torch.device) -> Any:
    if cls is PixelPipeline:
        denoiser = models.load_denoiser(source, dtype=dtype, device=device)
        return PixelPipeline(denoiser, models.load_scheduler(source))
    return models.load_pipeline(source, dtype=dtype, device=device)


def _inputs(
    cls: type, prompts: str | None, labels: Sequence[int] | None, samples: int | None
) -> list[dict[str, Any]]:
    """Return what each sample brings to a call of the pipeline."""
    if prompts is not None and labels is not None:
        raise PruningError("--prompts and --labels: a sample has one of them; give one")
    if samples is not None and samples < 1:
        raise PruningError(f"--samples: {samples} must be at least 1")
    taken = next((name for name in GIVEN if name in models.call_parameters(cls)), None)
    options = {"prompt": ("--prompts FILE", prompts), "class_labels": ("--labels 0,1,2", labels)}
    for name, (option, value) in options.items():
        if value is not None and name != taken:
            raise PruningError(
                f"{option.split()[0]}: {cls.__name__} takes no {name}; leave it out, or give "
                f"{options[taken][0] if taken else '--samples N'}"
            )
    if taken is None or (taken == "class_labels" and labels is None and cls is PixelPipeline):
        if samples is None:
            raise PruningError(f"{cls.__name__} is asked with nothing; say how many samples with --samples N")
        return [{} for _ in range(samples)]
    option, value = options[taken]
    if value is None:
        raise PruningError(f"{cls.__name__} takes {taken}; give {option}")
    each = _each(taken, value)
    return [each[index % len(each)] for index in range(samples or len(each))]


def _each(name: str, value: Any) -> list[dict[str, Any]]:
    if name == "class_labels":
        return [{name: [label]} for label in value]
    if not is_text(value):
        raise PruningError(
            f"--prompts: {shown(value)} is no text file; give one that ends in .txt, a prompt a line"
        )
    texts = open_prompts(value, ALL)
    return [{name: texts.fetch(index)} for index in range(len(texts))]
