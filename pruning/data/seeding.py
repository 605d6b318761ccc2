"""Random draws by sample index, so that results do not depend on batch size or process count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pruning.errors import PruningError, shown
from pruning.settings.section import fits

NOISE, TIMESTEP, LATENT, INITIAL, ANCESTRAL = range(5)
"""Streams: one sample has independent draws for each of these uses."""

_MASK = 0xFFFFFFFF


def check_seed(seed: int) -> None:
    """Raise PruningError unless it is a whole number."""
    if not fits(seed, int):
        raise PruningError(f"seed is {shown(seed)}; it must be a whole number")


def _mix(value: int) -> int:
    """Scramble 32 bits; a bijection, so two indices never share a generator (Murmur3's finaliser)."""
    value &= _MASK
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK
    return value ^ (value >> 16)


def sample_generator(seed: int, index: int, stream: int = 0) -> torch.Generator:
    """Return a fresh CPU generator of one sample: the same arguments give the same draws on every machine.

    Args:
        seed: Seed of the run, any integer.
        index: Sample index; a PruningError says unless 0 <= index < 2^32.
        stream: What the draws are for; different streams are independent.
    """
    if not 0 <= index <= _MASK:
        raise PruningError(f"sample index {index} is out of range: indices are 0 to {_MASK}")
    high = (seed >> 32) * 0x27D4EB2F & _MASK
    key = _mix(_mix(seed) ^ high ^ (stream * 0x9E3779B1 & _MASK))
    return torch.Generator().manual_seed(_mix(index ^ key))


def indexed_noise(
    indices: Iterable[int] | Tensor, shape: Sequence[int], seed: int, stream: int = NOISE
) -> Tensor:
    """Return standard normal noise, one independent draw per sample index: float32 (B, *shape) on the CPU.

    Args:
        indices: B sample indices.
        shape: Shape of one sample, e.g. ``(C, H, W)``.
        seed: Seed of the run.
        stream: See `sample_generator`.
    """
    ids = [int(i) for i in indices]
    draws = [torch.randn(tuple(shape), generator=sample_generator(seed, i, stream)) for i in ids]
    return torch.stack(draws) if draws else torch.empty(0, *shape)
