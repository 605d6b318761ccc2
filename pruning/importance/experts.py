"""Criteria of whole experts (docs/scores.md section 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.importance.base import criterion
from pruning.importance.moments import Weights, per_sample
from pruning.types import CalibrationStats, PrunableGroup


@criterion(
    "expert_energy",
    needs=("expert_energy", "layer_tokens"),
    experts="expert_energy",
    only="experts",
    whole=True,
)
def expert_energy(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score an expert by the mean over the layer's tokens of ``||g y||^2``, what it puts into the layer's output."""
    tokens = float(stats.get(group.name, "layer_tokens").sum())
    if not tokens > 0:
        raise PruningError(
            f"group {group.name!r}: calibration saw {tokens} tokens of the layer; it must see some"
        )
    return stats.get(group.name, "expert_energy") / tokens


@criterion("reap", needs=("expert_norm", "expert_rows"), experts="reap", only="experts", whole=True)
def reap(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score an expert by the mean over the tokens that it gets of ``g ||y||`` (REAP, arXiv 2510.13999, eq. 9)."""
    rows = stats.get(group.name, "expert_rows")
    return stats.get(group.name, "expert_norm") / rows.where(rows > 0, 1.0)  # 0 where no token came


@criterion(
    "expert_probe", needs=("expert_effect", "samples"), experts="expert_probe", only="experts", whole=True
)
def expert_probe(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score an expert by ``E_v z_e^2``, ``z_e = sum_i <d<v, eps>/dy_i, y_i>``, v random signs (ours).

    It estimates the squared change of the model's output when what the expert puts out is left away, so that values
    compare with those of blocks and of ``probe``. That its tokens then go to other experts is left out.
    """
    return per_sample(group, stats, "expert_effect")
