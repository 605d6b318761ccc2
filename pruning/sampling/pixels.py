"""Samples from a pixel denoiser, every draw seeded by sample index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.models.families import denoise, denoiser_call, null_class, num_classes, sample_shape
from pruning.sampling.steps import fresh_scheduler, initial_noise, run_steps, sample_generators, to_uint8


@torch.no_grad()
def sample(
    model: nn.Module,
    scheduler: Any,
    *,
    sample_ids: Sequence[int] | Tensor,
    labels: Sequence[int] | Tensor | None = None,
    num_steps: int,
    seed: int,
    batch_size: int,
    guidance_scale: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample images from a pixel denoiser, class-conditional if it has classes.

    Args:
        model: A denoiser on `device` that works on pixels.
        scheduler: Any diffusers scheduler; a copy is used.
        sample_ids: N sample indices; the same index and seed give the same image in any batch.
        labels: N classes; required if and only if the model is class-conditional.
        num_steps: Denoiser calls per sample (of the scheduler's grid).
        seed: Seed of the run.
        batch_size: Samples at once.
        guidance_scale: Classifier-free guidance, eps = eps_u + scale (eps_c - eps_u) (Ho and Salimans 2022); 1: none.
        device: Where the model is.

    Returns:
        uint8 (N, C, H, W) on the CPU.

    Raises:
        PruningError: If labels are missing, too many, out of range or not taken, if guidance is asked of a model
            without a null class, or if samples come out as NaN.
    """
    ids = torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    classes = _check_labels(model, labels, len(ids))
    if num_steps < 1 or batch_size < 1:
        raise PruningError(f"sampling: num_steps {num_steps} and batch_size {batch_size} must be at least 1")
    if guidance_scale != 1.0 and null_class(model) is None:
        raise PruningError(
            f"guidance_scale {guidance_scale}: {type(model).__name__} has no null class; use 1.0"
        )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        images = []
        for start in range(0, len(ids), batch_size):
            rows = slice(start, start + batch_size)
            chosen = None if classes is None else classes[rows].to(device)
            x = _sample_batch(model, scheduler, ids[rows], chosen, num_steps, seed, guidance_scale, device)
            if not bool(torch.isfinite(x).all()):
                raise PruningError(f"sampling: NaN or infinity in the samples {ids[rows].tolist()}")
            images.append(to_uint8(x).cpu())
    finally:
        for module, mode in modes:  # one by one: recovery keeps some modules in eval mode
            module.training = mode
    return torch.cat(images) if images else torch.empty(0, *sample_shape(model), dtype=torch.uint8)


def _check_labels(model: nn.Module, labels: Sequence[int] | Tensor | None, count: int) -> Tensor | None:
    """Return labels as int64 (N,), or None for an unconditional model."""
    classes = num_classes(model)
    if classes is None:
        if labels is not None:
            raise PruningError(
                f"labels were given, but {type(model).__name__} is not class-conditional; leave them out"
            )
        return None
    if labels is None:
        raise PruningError(f"{type(model).__name__} has {classes} classes: give one label per sample")
    found = torch.as_tensor(labels, dtype=torch.long).flatten()
    if len(found) != count:
        raise PruningError(f"{len(found)} labels for {count} samples: give one label per sample")
    allowed = max(classes - 1, null_class(model) or 0)
    if count and not 0 <= int(found.min()) <= int(found.max()) <= allowed:
        raise PruningError(
            f"labels go from {int(found.min())} to {int(found.max())}; the model has 0 to {classes - 1}"
        )
    return found


def _sample_batch(
    model: nn.Module,
    scheduler: Any,
    ids: Tensor,
    labels: Tensor | None,
    num_steps: int,
    seed: int,
    guidance_scale: float,
    device: torch.device | str,
) -> Tensor:
    """Return samples (B, C, H, W) in the model's own range."""
    dtype = next(model.parameters()).dtype

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return _predict(model, x.to(dtype), t, labels, guidance_scale)

    steps = fresh_scheduler(scheduler, num_steps, device)
    return run_steps(
        steps, predict, initial_noise(ids, sample_shape(model), seed).to(device), sample_generators(ids, seed)
    )


def _predict(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
    """Return the (guided) prediction at one timestep; with guidance both branches share one call."""
    timestep = t.to(x.device).expand(len(x))
    if labels is None:
        return denoise(model, denoiser_call(model, x, timestep, {}))
    if guidance_scale == 1.0:
        return denoise(model, denoiser_call(model, x, timestep, {"class_labels": labels}))
    empty = torch.full_like(labels, null_class(model) or 0)
    call = denoiser_call(
        model, torch.cat([x, x]), timestep.repeat(2), {"class_labels": torch.cat([labels, empty])}
    )
    conditional, unconditional = denoise(model, call).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
