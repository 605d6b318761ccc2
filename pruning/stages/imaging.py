"""Images of the data, noised as the run's own pipeline would show them: recorded arguments around their latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning import models
from pruning.data import (
    ImageData,
    NoisedBatches,
    noised_batches,
    num_train_timesteps,
    sample_generator,
)
from pruning.data.images import cached_images
from pruning.data.seeding import LATENT
from pruning.errors import PruningError
from pruning.recording import RecordedCalls, record
from pruning.recording.decoding import DECODING, Decoding
from pruning.recording.images import ImageCalls, noised_images
from pruning.sampling import PixelPipeline
from pruning.sampling.arguments import GUIDANCE, STEPS
from pruning.stages.run import Run
from pruning.stages.sampling import arguments_of, component, pipeline_around
from pruning.stages.stage import pick
from pruning.store import Key, hash_of

CALLS = "calls"
"""Folder of a recording in its result."""

GRID = 100
"""Noise levels at which images are shown to a pixel model, whose sampler may take any number of steps."""


def enters_by_recording(run: Run) -> bool:
    """Tell whether images are noised within recorded calls; else by the hand-written way of the model's class."""
    return run.pipeline_class is PixelPipeline or not models.is_known(run.meta)


@dataclass(frozen=True)
class Conditions:
    """What is recorded for images: what a call of the pipeline is asked with, and which of them goes with an image.

    Attributes:
        inputs: One mapping for each recorded sample.
        of_image: Row of the data -> recorded sample.
        without: The recorded sample of no label or caption; None where the model knows none.
    """

    inputs: list[dict[str, Any]]
    of_image: Callable[[int], int]
    without: int | None = None


def conditions_of(run: Run, data: ImageData, rows: Sequence[int]) -> Conditions:
    """Return what is recorded for some rows of the data.

    Raises:
        PruningError: If the model takes classes or texts, and the data have none.
    """
    taken = models.call_parameters(run.pipeline_class)
    if "prompt" in taken:
        texts = data.captions(rows)
        if texts is None:
            raise PruningError(
                f"{data.name} has no captions, which {run.pipeline_class.__name__} is asked with; name their column in "
                "data.caption_column"
            )
        known = {text: number for number, text in enumerate(dict.fromkeys([*texts, ""]))}
        number = {row: known[text] for row, text in zip(rows, texts, strict=True)}
        return Conditions([{"prompt": text} for text in known], number.__getitem__, known[""])
    classes = models.num_classes(run.meta) if "class_labels" in taken else None
    if classes is None:
        return Conditions([{}], lambda row: 0)
    fetch = data.fetch_label
    if fetch is None:
        raise PruningError(
            f"{type(run.meta).__name__} has {classes} classes, but the data have no labels: give label_column"
        )
    null = models.null_class(run.meta)
    labels = [*range(classes), *([] if null is None else [null])]
    return Conditions(
        [{"class_labels": [label]} for label in labels], fetch, None if null is None else classes
    )


def image_calls(run: Run, split: str, rows: Sequence[int]) -> ImageCalls:
    """Return what is shown of some rows of a split.

    The model does not run for it but to learn how its pipeline calls it.
    """
    data = run.images(split)
    conditions = conditions_of(run, data, rows)
    arguments = _arguments(run)
    key = Key(
        "recording",
        {
            **pick(run.recipe, ("seed", "model.dtype")),
            "images": True,
            "call": arguments,
            "inputs": hash_of(conditions.inputs),
        },
        run.workspace.hashes,
    )

    def work(folder: Path) -> None:
        record(
            pipeline_around(run, run.dense),
            conditions.inputs,
            folder / CALLS,
            call=arguments,
            seed=run.recipe.seed,
            points=None,
            for_images=True,
        )

    folder = run.part(key, work, resumable=True).folder / CALLS
    pipeline, read = pipeline_around(run, run.dense), cached_images(data)
    decoding = Decoding.load(folder / DECODING)

    def latents(wanted: Sequence[int]) -> Tensor:
        return decoding.latents_of(
            pipeline, read(wanted), [sample_generator(run.recipe.seed, i, LATENT) for i in wanted]
        )

    calls = RecordedCalls.open(folder)
    return ImageCalls(calls, component(run), latents, conditions.of_image, conditions.without)


def _arguments(run: Run) -> dict[str, Any]:
    """Return what the pipeline's call is given: what the recipe says, or for pixel models a grid of noise levels."""
    found = arguments_of(run, run.recipe.calibrate)
    if run.pipeline_class is PixelPipeline:
        found |= {STEPS: min(GRID, num_train_timesteps(run.scheduler)), GUIDANCE: 1.0}
    return found


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
        conditional: With their classes or captions; else as of none.
        skip: So many that others look at are left out.
        other_noise: Other timesteps and noise than others take for them.
    """
    rows = run.choose(split, count, skip=skip)
    how: dict[str, Any] = {
        "indices": rows,
        "batch_size": batch_size,
        "timestep_buckets": run.recipe.calibrate.timestep_buckets,
        "seed": run.recipe.seed + other_noise,
        "device": run.device,
        "dtype": run.dtype,
    }
    if not enters_by_recording(run):
        return noised_batches(
            run.images(split), run.conditioner, run.scheduler, conditional=conditional, **how
        )
    source = image_calls(run, split, rows)
    if not conditional:
        without = source.without
        assert without is not None
        source = replace(source, condition=lambda row: without)
    return noised_images(source, **how)
