"""Images of the data, noised as the run's own pipeline would show them: recorded arguments around their latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning.data import NoisedBatches
from pruning.recording import record
from pruning.recording.conditions import call_for_images, conditions_of, open_image_calls
from pruning.recording.images import ImageCalls, noised_images
from pruning.sampling import PixelPipeline
from pruning.stages.run import Run
from pruning.stages.sampling import arguments_of, component, pipeline_around
from pruning.stages.stage import pick
from pruning.store import Key, hash_of

CALLS = "calls"
"""Folder of a recording in its result."""

ASKED = ("pipeline", "calibrate.num_steps", "calibrate.guidance_scale")
"""Keys that say in which calls images are shown; not to pixel models."""


def call_of(run: Run) -> dict[str, Any]:
    """Return what the pipeline's call is given when images are shown; reads no weights.

    Pixel models are asked with the class alone, and at as many noise levels whatever the sampler takes.
    """
    is_pixel = run.pipeline_class is PixelPipeline
    asked = {} if is_pixel else arguments_of(run, run.recipe.calibrate)
    return call_for_images(run.pipeline_class, run.scheduler, asked)


def image_calls(run: Run, split: str, images: Sequence[int]) -> ImageCalls:
    """Return some images of a split within recorded calls.

    The model does not run for it but to learn how its pipeline calls it.
    """
    data, pipeline, call = run.images(split), pipeline_around(run, run.dense), call_of(run)
    conditions = conditions_of(run.pipeline_class, run.meta, data, images)
    key = Key(
        "recording",
        {
            **pick(run.recipe, ("seed", "model.dtype")),
            "images": True,
            "call": call,
            "inputs": hash_of(conditions.inputs),
        },
        run.workspace.hashes,
    )

    def work(folder: Path) -> None:
        record(
            pipeline,
            conditions.inputs,
            folder / CALLS,
            call=call,
            seed=run.recipe.seed,
            for_images=True,
            progress=lambda done, total: run.bars("recording prompts and classes", done, total),
        )

    folder = run.part(key, work, resumable=True).folder / CALLS
    return open_image_calls(folder, pipeline, component(run), data, images, conditions)


def noised(
    run: Run,
    split: str,
    count: int,
    *,
    batch_size: int,
    conditional: bool = True,
    skip: int = 0,
    other_noise: bool = False,
) -> NoisedBatches:
    """Return `count` images of a split, noised to every timestep bucket.

    Args:
        run: The run.
        split: Which.
        count: How many.
        batch_size: Of each call.
        conditional: With their classes or prompts; else as of none.
        skip: So many that others look at are left out.
        other_noise: Other timesteps and noise than others take for them.
    """
    return noised_images(
        image_calls(run, split, run.choose(split, count, skip=skip)),
        batch_size=batch_size,
        timestep_buckets=run.recipe.calibrate.timestep_buckets,
        seed=run.recipe.seed + other_noise,
        conditional=conditional,
        device=run.device,
        dtype=run.dtype,
    )
