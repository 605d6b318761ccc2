"""Samples from whole pipelines of diffusers, each with its own generator."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.sampling.steps import sample_generators, to_uint8


@torch.no_grad()
def sample_pipeline(
    pipeline: Any,
    *,
    sample_ids: Sequence[int] | Tensor,
    prompts: Sequence[str] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    num_steps: int,
    seed: int,
    batch_size: int,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Sample images from a whole diffusers pipeline, each with its own generator.

    Args:
        pipeline: A DiffusionPipeline that takes prompts, class labels, or neither.
        sample_ids: N sample indices; the same index and seed give the same image in any batch.
        prompts: N texts, if the pipeline takes prompts.
        labels: N classes, if it takes classes.
        num_steps: Denoising steps.
        seed: Seed of the run.
        batch_size: Samples at once.
        guidance_scale: As the pipeline understands it; 1: none.

    Returns:
        uint8 (N, C, H, W) on the CPU.

    Raises:
        PruningError: If prompts or labels are missing, not taken, or not one per sample; if guidance is asked of a
            pipeline without it; if samples come out as NaN.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    if num_steps < 1 or batch_size < 1:
        raise PruningError(f"sampling: num_steps {num_steps} and batch_size {batch_size} must be at least 1")
    taken = inspect.signature(pipeline.__call__).parameters
    condition = _pipeline_condition(pipeline, taken, prompts, labels, len(ids))
    fixed: dict[str, Any] = {"num_inference_steps": num_steps, "output_type": "np"}
    if "guidance_scale" in taken:
        fixed["guidance_scale"] = guidance_scale
    elif guidance_scale != 1.0:
        raise PruningError(f"guidance_scale {guidance_scale}: {type(pipeline).__name__} takes none; use 1.0")
    shown = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**{**shown, "disable": True})
    try:
        images = []
        for start in range(0, len(ids), batch_size):
            chunk = ids[start : start + batch_size]
            here: dict[str, Any] = {
                name: values[start : start + batch_size] for name, values in condition.items()
            }
            if "batch_size" in taken:
                here["batch_size"] = len(chunk)
            found = pipeline(**fixed, **here, generator=sample_generators(chunk, seed)).images
            pixels = torch.as_tensor(found, dtype=torch.float32).permute(0, 3, 1, 2)
            if not bool(torch.isfinite(pixels).all()):
                raise PruningError(f"sampling: NaN or infinity in the samples {chunk.tolist()}")
            images.append(to_uint8(pixels * 2 - 1))
    finally:
        pipeline.set_progress_bar_config(**shown)
    return torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)


def _pipeline_condition(
    pipeline: Any,
    taken: Mapping[str, Any],
    prompts: Sequence[str] | None,
    labels: Sequence[int] | Tensor | None,
    count: int,
) -> dict[str, list[Any]]:
    """Return the prompts or labels under the name that the pipeline gives them."""
    asked: dict[str, tuple[str, list[Any] | None]] = {
        "prompt": ("prompts", None if prompts is None else list(prompts)),
        "class_labels": ("labels", None if labels is None else [int(i) for i in labels]),
    }
    condition: dict[str, list[Any]] = {}
    for argument, (what, values) in asked.items():
        if values is None and argument in taken:
            raise PruningError(f"{type(pipeline).__name__} needs {what}: give one per sample")
        if values is None:
            continue
        if argument not in taken:
            raise PruningError(f"{what} were given, but {type(pipeline).__name__} takes none; leave them out")
        if len(values) != count:
            raise PruningError(f"{len(values)} {what} for {count} samples: give one per sample")
        condition[argument] = values
    return condition
