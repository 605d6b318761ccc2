"""The sink-aware score: `BASE` on rows weighted by the sinks, which keeps or discounts tokens that are sinks."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion, score_group
from pruning.importance.moments import Weights
from pruning.types import CalibrationStats, PrunableGroup

BASE = "probe_obs"  # the best criterion at equal cost where least squares follows; see docs/studies/sink-awareness.md


@criterion("sink", base=BASE, experts="expert_probe", weighting="on", on_device=True)
def sink(
    group: PrunableGroup,
    weights: Weights,
    stats: CalibrationStats,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Score with ``probe_obs`` on rows weighted by the sinks (``weighting="on"``)."""
    return score_group(BASE, group, weights, stats, generator, device)
