"""Random scores: the control that every other criterion must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights
from pruning.types import CalibrationStats, PrunableGroup


@criterion("random", blocks="random", experts="random", whole=True)
def random(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score units uniformly at random in [0, 1)."""
    return torch.rand(group.num_units, generator=generator, dtype=torch.float64)
