"""Fluctuation: the error of removing a unit when its mean is folded into the bias."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, consumer_columns, unit_covariance, unit_energy
from pruning.types import CalibrationStats, PrunableGroup


@criterion("fluctuation", needs=("input_unit_moment", "input_sum", "row_weight"))
def fluctuation(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by ``tr(W_g Sigma_gg W_g^T) = E||W_g (x_g - mu_g)||^2`` (FLAP, 2312.11983, generalised)."""
    columns = consumer_columns(group, weights)  # (C, P)
    return unit_energy(columns, unit_covariance(group, stats, columns.shape[1])).clamp(min=0)
