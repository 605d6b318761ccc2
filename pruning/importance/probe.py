"""Probe: the linearised change of the model's output, gathered while calibrating."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, per_sample
from pruning.types import CalibrationStats, PrunableGroup


@criterion("probe", needs=("probe_diag", "samples"), experts="expert_probe")
def probe(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by ``E_v z_g^2``, ``z_g = sum_i <d<v, eps>/dx_ig, x_ig - mu_g>``, v random signs (ours).

    It estimates the squared change of the model's output when the unit is replaced by its mean, so that values
    compare across layers.
    """
    return per_sample(group, stats, "probe_diag")
