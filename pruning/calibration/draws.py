"""Random draws of calibration, by sample index: the same whatever the batch size and the layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.data.seeding import sample_generator

QUERIES, PERMUTATION, SIGNS, ROWS = range(100, 104)
"""Streams; those of `pruning.data.seeding` are small numbers."""


def _generator(seed: int, sample: int, purpose: int, detail: int) -> torch.Generator:
    return sample_generator(seed, sample, purpose + (detail << 8))


def subset(seed: int, samples: Sequence[int], total: int, count: int, purpose: int = QUERIES) -> Tensor:
    """Return `count` of `total` tokens without replacement for every sample, int64 (B, count), sorted.

    The draw of a sample is the same at every timestep, head and layer of `total` tokens, so that sampling noise
    does not make a stable key look unstable.
    """
    draws = [
        torch.randperm(total, generator=_generator(seed, s, purpose, total))[:count].sort().values
        for s in samples
    ]
    return torch.stack(draws)


def permutations(seed: int, samples: Sequence[int], total: int) -> Tensor:
    """Return one permutation of `total` tokens per sample, fixed over timesteps, heads and layers; int64 (B, total)."""
    draws = [torch.randperm(total, generator=_generator(seed, s, PERMUTATION, total)) for s in samples]
    return torch.stack(draws)


def random_signs(
    seed: int, samples: Sequence[int], timesteps: Sequence[float], shape: Sequence[int]
) -> Tensor:
    """Return +1 or -1 with equal chance, float32 (B, *shape), independent between samples and timesteps."""
    draws = []
    for sample, timestep in zip(samples, timesteps, strict=True):
        generator = _generator(seed, sample, SIGNS, round(timestep * 1000))
        draws.append(torch.randint(0, 2, tuple(shape), generator=generator))
    return torch.stack(draws).float() * 2 - 1
