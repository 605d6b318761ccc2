"""Diff-Pruning: first-order effects that may cancel over timesteps, noisy ones left out."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, per_sample
from pruning.types import CalibrationStats, PrunableGroup


@criterion("diff_pruning", needs=("diff_pruning", "samples"), experts="expert_probe", whole=True)
def diff_pruning(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by ``sum over its weights of |w sum_t dL_t/dw|``, t from 0 while L_t counts (Diff-Pruning).

    The Taylor expansion over pruned timesteps of Fang et al. 2023, arXiv 2305.10924. It agrees with torch-pruning's
    ``TaylorImportance(multivariable=False)``, which the paper's code calls, up to a factor per group: that one takes
    the mean over the coupled layers and divides by the mean over the units.
    """
    return per_sample(group, stats, "diff_pruning")
