"""First-order Taylor expansion of the data loss, gathered while calibrating."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, per_sample
from pruning.types import CalibrationStats, PrunableGroup


@criterion("taylor", needs=("taylor", "samples"), experts="expert_probe")
def taylor(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by ``E|sum_i <a_ig, dL/da_ig>|`` with L the data loss (Molchanov et al., 1906.10771, eq. 8)."""
    return per_sample(group, stats, "taylor")
