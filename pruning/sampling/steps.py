"""The loop of a sampler: noise in, samples out, every draw seeded by sample index."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pruning.data.seeding import ANCESTRAL, sample_generator
from pruning.errors import PruningError


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as rounded uint8 in 0..255 (truncating would bias every metric)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def fresh_scheduler(scheduler: Any, num_steps: int, device: torch.device | str = "cpu") -> Any:
    """Return a copy of `scheduler` without history, set to `num_steps` timesteps.

    Raises:
        PruningError: If it cannot take so many steps, or draws noise that cannot be seeded by sample.
    """
    name = type(scheduler).__name__
    if scheduler.config.get("stochastic_sampling"):
        raise PruningError(
            f"scheduler {name}: stochastic_sampling draws from the global generator; switch it off"
        )
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    plain = {"variance_type": "fixed_small"} if learned else {}  # `denoise` drops the learned variance
    steps = type(scheduler).from_config(scheduler.config, **plain)
    try:
        steps.set_timesteps(num_steps, device=device)
    except Exception as error:  # each scheduler has its own checks
        raise PruningError(f"scheduler {name} cannot take {num_steps} steps: {error}") from error
    return steps


def in_batches(
    ids: Tensor, batch_size: int, draw: Callable[[slice], Tensor], finish: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return what `draw` makes of each slice of the N sample indices, made ready by `finish`, on the CPU.

    Raises:
        PruningError: For a batch size below 1, or for samples that are NaN or infinite.
    """
    if batch_size < 1:
        raise PruningError(f"sampling: batch_size {batch_size} must be at least 1")
    samples = []
    for start in range(0, len(ids), batch_size):
        rows = slice(start, start + batch_size)
        drawn = draw(rows)
        if not bool(torch.isfinite(drawn).all()):
            raise PruningError(f"sampling: NaN or infinity in the samples {ids[rows].tolist()}")
        samples.append(finish(drawn).cpu())
    return samples


def run_steps(
    steps: Any, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """Return samples (B, C, H, W) of a scheduler from `fresh_scheduler`, which is used up.

    Args:
        steps: The scheduler.
        predict: (the model's input, timestep) -> the model's prediction.
        noise: Standard normal (B, C, H, W).
        generators: One per sample, for steps that draw noise.
    """
    draws = "generator" in inspect.signature(steps.step).parameters
    extra = {"generator": generators} if draws else {}
    x = noise * getattr(steps, "init_noise_sigma", 1.0)
    for t in steps.timesteps:
        model_in = steps.scale_model_input(x, t) if hasattr(steps, "scale_model_input") else x
        x = steps.step(predict(model_in, t).to(x.dtype), t, x, **extra, return_dict=False)[0]
    return x


def sample_generators(ids: Tensor, seed: int) -> list[torch.Generator]:
    """Return one generator per sample, for noise that is drawn on the way."""
    return [sample_generator(seed, int(i), ANCESTRAL) for i in ids]
