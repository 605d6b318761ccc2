"""Which keys are sinks (docs/scores.md section 2)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pruning.calibration.attention.streaming import SinkSums
from pruning.settings import SinkWeights

MIN_KEYS = 8
"""With fewer visible keys than this no key is called a sink."""


def detection_settings(settings: SinkWeights) -> dict[str, Any]:
    """Return the settings that detection depends on: all but the weights of what is detected."""
    late = ("unstable", "stable", "kappa")
    return {name: value for name, value in asdict(settings).items() if name not in late}


def relative_mass(sums: SinkSums) -> Tensor:
    """Return r_j = sum_i A_ij / sum_i (V_ij / M_i), (B, H, M): 1 for an indifferent head, 0 for a masked key."""
    if sums.expected is None:
        return sums.mass * sums.mass.shape[-1]
    hidden = sums.expected <= 0
    return torch.where(hidden, 0.0, sums.mass / sums.expected.masked_fill(hidden, 1.0))


def visible_keys(sums: SinkSums) -> Tensor:
    """Return which keys some query sees, (B, M) bool."""
    if sums.expected is None:
        return torch.ones_like(sums.mass[:, 0], dtype=torch.bool)
    return (sums.expected > 0).any(1)


def soft_indicator(sums: SinkSums, settings: SinkWeights) -> Tensor:
    """Return the soft sink indicator s of every key from the head mean, (B, M) float64 in [0, 1].

    Zero for masked keys, and everywhere in a sample with fewer than `MIN_KEYS` visible keys. The modes are those of
    `settings`.
    """
    keys = sums.mass.shape[-1]
    shown = visible_keys(sums)
    visible = shown.sum(-1, keepdim=True)  # (B, 1)
    if settings.mode == "ratio":
        ratio, rho = relative_mass(sums).mean(1), visible.double().sqrt()
        rho = rho if settings.rho is None else torch.full_like(rho, settings.rho)
        s = torch.sigmoid(settings.alpha * (ratio.log() - rho.log()))
    elif settings.mode == "paper":
        mass = sums.mass.sum(1) * sums.total
        spread = mass.std(-1, keepdim=True, correction=0)
        s = torch.sigmoid(
            settings.alpha * (mass - mass.mean(-1, keepdim=True) - settings.deviations * spread)
        )
    else:
        s = (sums.mass.mean(1) > 1 / keys + settings.epsilon).double()
    return torch.where(shown & (visible >= MIN_KEYS), s, 0.0)
