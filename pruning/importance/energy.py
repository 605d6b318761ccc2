"""Output energy: the error of removing a unit and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, consumer_columns, per_row, unit_energy
from pruning.types import CalibrationStats, PrunableGroup


@criterion("energy", needs=("input_unit_moment", "row_weight"))
def energy(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by ``tr(W_g H_gg W_g^T) = E||W_g x_g||^2``."""
    columns = consumer_columns(group, weights)  # (C, P)
    units, u = group.num_units, columns.shape[1] // group.num_units
    return unit_energy(columns, per_row(group, stats, "input_unit_moment", (units, u, u)))
