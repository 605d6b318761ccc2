"""Wanda in its structured form: squared weights times the mean square of what they multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, consumer_columns, per_row
from pruning.types import CalibrationStats, PrunableGroup


@criterion("wanda", needs=("input_sq", "row_weight"))
def wanda(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by ``sum_{c in g} ||W_c||^2 H_cc`` (Wanda, arXiv 2306.11695, eq. 1, squared and summed)."""
    columns = consumer_columns(group, weights)  # (C, P)
    mean_sq = per_row(group, stats, "input_sq", (columns.shape[1],))
    return (columns.square().sum(0) * mean_sq).unflatten(0, (group.num_units, -1)).sum(1)
