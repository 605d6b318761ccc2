"""Samples from a pixel denoiser, every draw seeded by sample index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.data.noise import num_train_timesteps
from pruning.data.seeding import INITIAL, indexed_noise
from pruning.errors import PruningError
from pruning.models.families import denoise, denoiser_call, null_class, num_classes, sample_shape
from pruning.sampling.steps import fresh_scheduler, in_batches, run_steps, sample_generators


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
) -> Tensor:
    """Sample images from a pixel denoiser, class-conditional if it has classes.

    Args:
        model: A denoiser that works on pixels.
        scheduler: Any diffusers scheduler; a copy is used.
        sample_ids: N sample indices; the same index and seed give the same image in any batch.
        labels: N classes; required if and only if the model is class-conditional.
        num_steps: Denoiser calls per sample (of the scheduler's grid).
        seed: Seed of the run.
        batch_size: Samples at once.
        guidance_scale: Classifier-free guidance, eps = eps_u + scale (eps_c - eps_u) (Ho and Salimans 2022); 1: none.

    Returns:
        uint8 (N, C, H, W) on the CPU.

    Raises:
        PruningError: If labels are missing, too many, out of range or not taken, if guidance is asked of a model
            without a null class, if there is no scheduler, or if samples come out as NaN.
    """
    num_train_timesteps(scheduler)  # no scheduler fails here
    ids = torch.as_tensor(sample_ids, dtype=torch.long).flatten()
    classes = _check_labels(model, labels, len(ids))
    if guidance_scale != 1.0 and null_class(model) is None:
        raise PruningError(
            f"guidance_scale {guidance_scale}: {type(model).__name__} has no null class; use 1.0"
        )
    shape, first = sample_shape(model), next(model.parameters())

    def draw(rows: slice) -> Tensor:
        chosen = None if classes is None else classes[rows].to(first.device)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return _predict(model, x.to(first.dtype), t, chosen, guidance_scale)

        steps = fresh_scheduler(scheduler, num_steps, first.device)
        noise = indexed_noise(ids[rows], shape, seed, INITIAL).to(first.device)
        return run_steps(steps, predict, noise, sample_generators(ids[rows], seed))

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        images = in_batches(ids, num_steps, batch_size, draw)
    finally:
        for module, mode in modes:  # one by one: recovery keeps some modules in eval mode
            module.training = mode
    return torch.cat(images) if images else torch.empty(0, *shape, dtype=torch.uint8)


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


def _predict(model: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
    """Return the (guided) prediction at one timestep; with guidance both branches share one call."""
    timestep = t.to(x.device).expand(len(x))
    if labels is None or guidance_scale == 1.0:
        condition = {} if labels is None else {"class_labels": labels}
        return denoise(model, denoiser_call(model, x, timestep, condition))
    empty = torch.full_like(labels, null_class(model) or 0)
    call = denoiser_call(
        model, torch.cat([x, x]), timestep.repeat(2), {"class_labels": torch.cat([labels, empty])}
    )
    conditional, unconditional = denoise(model, call).chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
