"""Criteria of whole residual blocks (docs/scores.md section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, per_sample
from pruning.types import CalibrationStats, PrunableGroup


@criterion(
    "block_change",
    needs=("block_change", "samples"),
    experts="expert_probe",
    only="blocks",
    whole=True,
)
def block_change(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a block by the mean of ``w_tau ||eps_full - eps_without_block||^2``."""
    return per_sample(group, stats, "block_change")


@criterion(
    "block_cosine",
    needs=("block_cosine", "samples"),
    experts="block_cosine",
    only="blocks",
    whole=True,
)
def block_cosine(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a block by the mean over tokens and samples of ``1 - cos(x_in, x_out)`` (a prefilter)."""
    return per_sample(group, stats, "block_cosine")
