"""Sink mass: heads that attend to sinks go first (2601.06787)."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.importance.base import criterion
from pruning.importance.moments import Weights, per_sample
from pruning.types import CalibrationStats, PrunableGroup


@criterion(
    "sink_mass",
    needs=("sink_mass", "samples"),
    instead={"ffn_channels": "fluctuation", "resnet_channels": "fluctuation"},
    whole=True,
)
def sink_mass(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a head by minus its mean attention mass on the sink set; other kinds by ``fluctuation``.

    A unit of grouped-query attention scores by the mean over its query heads.
    """
    mass = per_sample(group, stats, "sink_mass").sum(0)  # (H,)
    if mass.numel() % group.num_units:
        raise PruningError(
            f"group {group.name!r}: 'sink_mass' has {mass.numel()} heads, not a multiple of {group.num_units} units"
        )
    return -mass.unflatten(0, (group.num_units, -1)).mean(1)
