"""How a run's models generate: pixel models by the plain sampler, the others in their pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from pruning import sampling
from pruning.data import takes_text
from pruning.errors import PruningError
from pruning.models import num_classes
from pruning.sampling import sample, sample_pipeline
from pruning.stages.run import Run

Sampler = Callable[[Sequence[int] | Tensor], Tensor]
"""Sample ids (N,) -> uint8 (N, C, H, W); image i depends on id i alone."""


def scheduler_named(scheduler: Any, name: str | None) -> Any:
    """Return `scheduler`, or one of the diffusers class `name` with its settings.

    Raises:
        PruningError: If there is no such scheduler class, or it cannot be built with these settings.
    """
    try:
        return sampling.scheduler_named(scheduler, name)
    except PruningError as error:
        raise PruningError(f"evaluate.sampler: {error}") from error


def labels_of(run: Run, ids: Sequence[int] | Tensor) -> Tensor | None:
    """Return the class of each sample: all classes in turn; None for a model without classes."""
    classes = num_classes(run.meta)
    return None if classes is None else torch.as_tensor(ids, dtype=torch.long) % classes


def prompts_of(run: Run, split: str, ids: Sequence[int] | Tensor) -> list[str] | None:
    """Return the caption of each sample: those of a split in turn; None for a model without text."""
    if not takes_text(run.meta):
        return None
    data = run.images(split)
    if data.fetch_caption is None:
        raise PruningError(
            f"{data.name} has no captions to generate from; name their column in data.caption_column"
        )
    return data.captions([int(i) % len(data) for i in ids])


def sampler(
    run: Run,
    model: ModelMixin,
    *,
    split: str,
    num_steps: int,
    guidance_scale: float,
    batch_size: int,
    scheduler: str | None = None,
) -> Sampler:
    """Return what generates images with `model`.

    Args:
        run: Knows pipeline, scheduler, classes and captions.
        model: The denoiser, dense or slim.
        split: Split whose captions are the prompts of a text model.
        num_steps: Denoising steps.
        guidance_scale: Classifier-free guidance; 1 is none.
        batch_size: Samples at a time.
        scheduler: Class to sample with; None takes the model's own.
    """
    steps = scheduler_named(run.scheduler, scheduler)
    options: dict[str, Any] = {
        "num_steps": num_steps,
        "seed": run.recipe.seed,
        "batch_size": batch_size,
        "guidance_scale": guidance_scale,
    }
    if run.autoencoder is None:
        return lambda ids: sample(model, steps, sample_ids=ids, labels=labels_of(run, ids), **options)
    pipeline = pipeline_with(run, model, steps)
    return lambda ids: sample_pipeline(
        pipeline,
        sample_ids=ids,
        labels=labels_of(run, ids),
        prompts=prompts_of(run, split, ids),
        **options,
    )


def pipeline_with(run: Run, model: ModelMixin, scheduler: Any) -> DiffusionPipeline:
    """Return the run's pipeline around another denoiser and scheduler; all other parts are shared."""
    assert run.pipeline is not None
    parts = dict(run.pipeline.components)
    name = next(name for name in ("unet", "transformer") if name in parts)
    pipeline = type(run.pipeline)(**{**parts, name: model, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
