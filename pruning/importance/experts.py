"""Criteria of whole experts (docs/scores.md section 8)."""

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
    only="experts",
    whole=True,
)
def expert_energy(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score an expert by the mean over the layer's tokens of ``||g y||^2``, what it puts into the layer's output."""
    return _energy(group, stats)


@criterion("reap", needs=("expert_norm", "expert_rows"), only="experts", whole=True)
def reap(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score an expert by the mean of ``g ||y||`` over the tokens that it gets (REAP, arXiv 2510.13999)."""
    rows = stats.get(group.name, "expert_rows")
    return stats.get(group.name, "expert_norm") / rows.where(rows > 0, 1.0)  # 0 where no token came


@criterion(
    "expert_probe",
    needs=("expert_effect", "expert_energy", "layer_tokens", "samples"),
    only="experts",
    whole=True,
)
def expert_probe(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score an expert by ``sqrt(rho E||g y||^2 E z_e^2)``, in units of the model's squared output (ours).

    ``z_e = sum_i <d<v, eps>/dy_i, y_i>``, v random signs, estimates how what the expert puts out moves the model's
    output, and ``rho = sum_e E z_e^2 / sum_e E||g y||^2`` the layer's share in it. A sample's z_e is one draw; the
    energy has little noise and does not know what the model makes of it. Half-way, in logarithms, is nearer to the
    change that was measured than either. That tokens then go to other experts is left out.
    """
    effect, energy = per_sample(group, stats, "expert_effect"), _energy(group, stats)
    if float(energy.sum()) == 0:
        return torch.zeros_like(effect)
    return (effect.sum() / energy.sum() * energy * effect).sqrt()


def _energy(group: PrunableGroup, stats: CalibrationStats) -> Tensor:
    """Return what each expert puts into the layer's output, (E,), a mean over the tokens that enter the layer."""
    tokens = float(stats.get(group.name, "layer_tokens").sum())
    if not tokens > 0:
        raise PruningError(
            f"group {group.name!r}: calibration saw {tokens} tokens of the layer; it must see some"
        )
    return stats.get(group.name, "expert_energy").to("cpu", torch.float64) / tokens
