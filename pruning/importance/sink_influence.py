"""S2 of docs/scores.md section 4: set OBS on rows weighted by how far later attention broadcasts an error at them."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion, score_group
from pruning.importance.moments import Weights
from pruning.types import CalibrationStats, PrunableGroup


@criterion("sink_influence", base="obs", weighting="influence", on_device=True)
def sink_influence(
    group: PrunableGroup,
    weights: Weights,
    stats: CalibrationStats,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Score with ``obs`` on rows weighted by how far later attention broadcasts an error at them (ours).

    ``u_i = w_tau (1 + kappa sum_{later sites, h} ||W^O_h W^V_h||_F^2 / C sum_q A_qi^2)``, kappa = 1: an error at a
    token that all later queries attend to, a sink above all, reaches all of them. Forward passes only; the squared
    attention comes from the first pass, a mean over the sample's timesteps. Rows that no later self-attention of as
    many tokens reads weigh w_tau. ``weighting="influence_permuted"`` is the control.
    """
    return score_group("obs", group, weights, stats, generator, device)
