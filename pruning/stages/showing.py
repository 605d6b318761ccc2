"""What a run shows its models: noised images of the data, or what the dense model's own pipeline asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning.data import NoisedBatches
from pruning.errors import PruningError
from pruning.models import example_call
from pruning.models.native import has_native_input
from pruning.recording import RecordedCalls, record, recorded_batches
from pruning.settings import NOISED, RENOISED
from pruning.stages.imaging import CALLS, noised
from pruning.stages.run import Run
from pruning.stages.sampling import arguments_of, component, pipeline_around, steps_of
from pruning.stages.stage import pick
from pruning.store import Key

RECORDED = (
    "seed",
    "model.dtype",
    "data.caption_column",
    "pipeline",
    "calibrate.num_steps",
    "calibrate.guidance_scale",
    "calibrate.timestep_buckets",
)
"""Keys that say what a recording holds."""

RECORDED_SAMPLES = 256
"""Recorded samples to train on where nobody says how many."""


def is_recorded(run: Run) -> bool:
    """Tell whether calibration shows recorded calls."""
    return run.recipe.calibrate.provider != NOISED


def recovery_provider(run: Run) -> str:
    """Return what the slim model is trained on, with null resolved."""
    return run.recipe.recover.provider or run.recipe.calibrate.provider


def source_of(provider: str) -> str:
    """Return the source of `recorded_batches` that a provider stands for."""
    return "x0" if provider == RENOISED else "points"


def shown(
    run: Run, samples: Sequence[int], *, held_out: bool = False, batch_size: int | None = None
) -> NoisedBatches:
    """Return what calibration and evaluation show, by the recipe's provider.

    Args:
        run: The run.
        samples: Numbers of recorded samples; of images only their count matters, which are drawn by the seed.
        held_out: Of the split that evaluation reads.
        batch_size: Rows of a call; None: that of calibration.
    """
    recipe = run.recipe
    size = batch_size or recipe.calibrate.batch_size
    return _batches(run, recipe.calibrate.provider, samples, size, held_out=held_out)


def shown_in_training(run: Run, batch_size: int) -> NoisedBatches:
    """Return what the dense model is shown where each block of the slim one is trained by itself."""
    provider, count = recovery_provider(run), trained_samples(run)
    if provider == NOISED:
        count = min(count, len(run.images(run.recipe.data.split)))
    return _batches(run, provider, range(count), batch_size)


def _batches(
    run: Run, provider: str, samples: Sequence[int], batch_size: int, *, held_out: bool = False
) -> NoisedBatches:
    recipe = run.recipe
    if provider == NOISED:
        return noised(run, _split(run, held_out), len(samples), batch_size=batch_size)
    return recorded_batches(
        recorded(run, max(samples) + 1, held_out=held_out),
        denoiser=component(run),
        source=source_of(provider),
        samples=samples,
        batch_size=batch_size,
        timestep_buckets=recipe.calibrate.timestep_buckets,
        seed=recipe.seed,
        device=run.device,
        dtype=run.dtype,
    )


def recorded(run: Run, count: int, *, held_out: bool = False) -> RecordedCalls:
    """Return recorded calls of the dense model's pipeline, of at least `count` samples, made or found in the store.

    Of the training split as many are made as any stage of the recipe asks for.
    """
    if not held_out:
        count = max(count, training_samples(run))
    key = recording_key(run, count, held_out=held_out)

    def work(folder: Path) -> None:
        section = run.recipe.calibrate
        record(
            pipeline_around(run, run.dense),
            run.inputs(_split(run, held_out), count, spread=True),
            folder / CALLS,
            call=arguments_of(run, section),
            seed=run.recipe.seed + held_out,
            points=section.timestep_buckets,
            noised_anew=needs_noising(run),
            progress=lambda done, total: run.bars("recording", done, total),
        )
        run.release_pipeline()

    return RecordedCalls.open(run.part(key, work, resumable=True).folder / CALLS)


def _split(run: Run, held_out: bool) -> str:
    return run.recipe.data.eval_split if held_out else run.recipe.data.split


def trained_samples(run: Run) -> int:
    """Return how many recorded samples the slim model is trained on, with null resolved."""
    return run.recipe.recover.num_samples or RECORDED_SAMPLES


def training_samples(run: Run) -> int:
    """Return how many samples of the training split the stages of the recipe read."""
    recipe = run.recipe
    asked = []
    if is_recorded(run):
        judged = recipe.prune.candidate_samples if recipe.prune.candidates > 1 else 0
        asked.append(seen_before_candidates(run) + judged)
    if recipe.recover.enabled and recovery_provider(run) != NOISED:
        asked.append(trained_samples(run))
    return max(asked, default=0)


def seen_before_candidates(run: Run) -> int:
    """Return how many recorded samples calibration sees, and those by which the ranks of low-rank forms are chosen."""
    recipe = run.recipe
    return recipe.calibrate.num_samples * (1 + (recipe.prune.modulation_error is not None))


def needs_noising(run: Run) -> bool:
    """Tell whether any stage noises recorded ends anew."""
    trains = run.recipe.recover.enabled and recovery_provider(run) == RENOISED
    return trains or run.recipe.calibrate.provider == RENOISED


def recording_key(run: Run, count: int, *, held_out: bool) -> Key:
    """Return what a recording depends on; one of more samples serves, too."""
    config = {**pick(run.recipe, RECORDED), "split": _split(run, held_out), "held_out": held_out}
    return Key("recording", config, run.workspace.hashes, {"samples": [str(i) for i in range(count)]})


def shows_recorded_example(run: Run) -> bool:
    """Tell whether costs and latency are those of a recorded call; else of one at the model's native size."""
    return is_recorded(run) and not has_native_input(run.meta)


def example(run: Run, batch_size: int) -> dict[str, Any]:
    """Return a call of the dense model, for costs and latency: at its native size, or one that was recorded."""
    if not shows_recorded_example(run):
        return example_call(run.dense, batch_size)
    calls = recorded(run, 1)
    return calls.example(component(run), batch_size, device=run.device, dtype=run.dtype)


def check_recording(run: Run) -> None:
    """Raise PruningError if recorded calls cannot be shown in the recipe's timestep buckets, or with its weights."""
    section = run.recipe.calibrate
    steps = steps_of(run, section)
    if steps is not None and section.timestep_buckets > steps:
        raise PruningError(
            f"calibrate.timestep_buckets: {section.timestep_buckets} is more than the {steps} sampling steps that are "
            f"recorded; use at most {steps}, or more steps"
        )
    if section.timestep_weights == "sampler":
        raise PruningError(
            "calibrate.timestep_weights: 'sampler' weighs timesteps of noised images; recorded steps are those of the "
            "sampler; use uniform"
        )
