"""Samples from whole pipelines of diffusers, each with its own generator."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.sampling.steps import in_batches, sample_generators


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
    """Sample images from a whole diffusers pipeline, each with its own generator; uint8 (N, C, H, W) on the CPU.

    As `pruning.sampling.sample`, but that the pipeline may take `prompts`, one text per sample, instead of labels or
    neither of both, and that `guidance_scale` is as the pipeline understands it.

    Raises:
        PruningError: If prompts or labels are missing, not taken, or not one per sample; if guidance is asked of a
            pipeline without it; if samples come out as NaN.
    """
    ids, name = torch.as_tensor(sample_ids, dtype=torch.long).flatten(), type(pipeline).__name__
    taken = inspect.signature(pipeline.__call__).parameters
    condition: dict[str, list[Any]] = {}
    for argument, what, values in (("prompt", "prompts", prompts), ("class_labels", "labels", labels)):
        if values is None and argument in taken:
            raise PruningError(f"{name} needs {what}: give one per sample")
        if values is None:
            continue
        if argument not in taken:
            raise PruningError(f"{what} were given, but {name} takes none; leave them out")
        if len(values) != len(ids):
            raise PruningError(f"{len(values)} {what} for {len(ids)} samples: give one per sample")
        condition[argument] = values.tolist() if isinstance(values, Tensor) else list(values)
    fixed: dict[str, Any] = {"num_inference_steps": num_steps, "output_type": "np"}
    if "guidance_scale" in taken:
        fixed["guidance_scale"] = guidance_scale
    elif guidance_scale != 1.0:
        raise PruningError(f"guidance_scale {guidance_scale}: {name} takes none; use 1.0")

    def draw(rows: slice) -> Tensor:
        here: dict[str, Any] = {argument: values[rows] for argument, values in condition.items()}
        if "batch_size" in taken:
            here["batch_size"] = len(ids[rows])
        found = pipeline(**fixed, **here, generator=sample_generators(ids[rows], seed)).images
        return torch.as_tensor(found, dtype=torch.float32).permute(0, 3, 1, 2) * 2 - 1

    shown = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**{**shown, "disable": True})
    try:
        images = in_batches(ids, num_steps, batch_size, draw)
    finally:
        pipeline.set_progress_bar_config(**shown)
    return torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)
