"""FLAP: how much the inputs of a layer fluctuate, made comparable across layers by standardising (2312.11983)."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import Weights, consumer_columns, per_row
from pruning.types import CalibrationStats, PrunableGroup


@criterion("flap", needs=("input_sq", "input_sum", "row_weight"))
def flap(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by the mean over its columns c of ``||W_c||^2 Var(x_c)``, z-scored over the layer (FLAP).

    The weighted fluctuation metric of An et al. 2023, arXiv 2312.11983 (WIFV), standardised by layer for their search
    of the global structure (AL-AM); a head is the mean of its standardised columns. A layer whose columns all
    fluctuate alike scores 0.

    Half of the scores are negative and none is an error, so that dividing them by a cost says nothing: in global scope
    they are ranked as they are, as in the paper.
    """
    columns = consumer_columns(group, weights)  # (C, P)
    shape = (columns.shape[1],)
    mean = per_row(group, stats, "input_sum", shape)
    variance = (per_row(group, stats, "input_sq", shape) - mean.square()).clamp(min=0)
    fluctuation = columns.square().sum(0) * variance  # (P,)
    centred = fluctuation - fluctuation.mean()
    spread = centred.square().sum().div(max(len(centred) - 1, 1)).sqrt()
    alike = spread <= 1e-12 * fluctuation.mean()
    z = torch.zeros_like(centred) if bool(alike) else centred / spread
    return z.unflatten(0, (group.num_units, -1)).mean(1)
