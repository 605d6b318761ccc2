"""How a run's models generate: pixel models by the plain sampler, the others in their pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from pruning.data import ImageData, takes_text
from pruning.errors import PruningError
from pruning.models import num_classes
from pruning.models.sources import DENOISER_FOLDERS
from pruning.sampling import sample, sample_pipeline, scheduler_named
from pruning.settings import Calibrate, Evaluate
from pruning.stages.run import Run

Sampler = Callable[[Sequence[int] | Tensor], Tensor]
"""Sample ids (N,) -> uint8 (N, C, H, W); image i depends on id i alone."""


def labels_of(run: Run, ids: Sequence[int] | Tensor) -> Tensor | None:
    """Return the class of each sample: all classes in turn; None for a model without classes."""
    classes = num_classes(run.meta)
    return None if classes is None else torch.as_tensor(ids, dtype=torch.long) % classes


def prompts_of(run: Run, split: str, ids: Sequence[int] | Tensor) -> list[str] | None:
    """Return the caption of each sample: those of a split in turn; None for a model without text."""
    if not takes_text(run.meta):
        return None
    data = run.images(split)
    check_captions(data)
    return data.captions([int(i) % len(data) for i in ids])


def check_captions(data: ImageData) -> None:
    """Raise PruningError if there are no captions to generate from."""
    if data.fetch_caption is None:
        raise PruningError(
            f"{data.name} has no captions to generate from; name their column in data.caption_column"
        )


def sampler(run: Run, model: ModelMixin, section: Calibrate | Evaluate) -> Sampler:
    """Return what generates images with `model`, the dense or a slim one, as a section of the recipe says.

    `Evaluate` may name another scheduler than the model's own, and has its prompts from the held-out split.
    """
    named, split = None, run.recipe.data.split
    if isinstance(section, Evaluate):
        named, split = section.sampler, run.recipe.data.eval_split
    scheduler = scheduler_named(run.scheduler, named)
    options: dict[str, Any] = {
        "num_steps": section.num_steps,
        "seed": run.recipe.seed,
        "batch_size": section.batch_size,
        "guidance_scale": section.guidance_scale,
    }
    if run.autoencoder is None:
        return lambda ids: sample(model, scheduler, sample_ids=ids, labels=labels_of(run, ids), **options)
    assert run.pipeline is not None
    parts = dict(run.pipeline.components)
    name = next(name for name in DENOISER_FOLDERS if name in parts)
    pipeline = type(run.pipeline)(**{**parts, name: model, "scheduler": scheduler})  # all else is shared
    return lambda ids: sample_pipeline(
        pipeline,
        sample_ids=ids,
        labels=labels_of(run, ids),
        prompts=prompts_of(run, split, ids),
        **options,
    )
