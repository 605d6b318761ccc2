"""S1 of docs/scores.md section 4: what a removal changes in the model's output after the kept columns made up for it.

Let q_i = d<v, eps>/dy_i be the gradient at row i of the consumer's output, v random signs. With least squares the
columns R leave ``W_R r_i``, ``r_i = x_R - mu_R - B (x_K - mu_K)``, ``B = Sigma_RK (Sigma_KK + gamma I)^-1``, and the
projected output moves by ``z_R = sum_i q_i^T W_R r_i``. Over random signs ``E q_i q_j^T = J_i^T J_j``, J_i the Jacobian
of the output by row i. Two assumptions make ``E z_R^2`` a matter of second moments (the two of K-FAC, Martens and
Grosse 2015): rows do not act together (J_i^T J_j = 0 for i != j), and sensitivity does not depend on the input. Then

    E z_R^2 = tr(S W_R E[r r^T] W_R^T) = tr(V_R [((Sigma + gamma I)^-1)_RR]^-1 V_R^T),   S = E sum_i q_i q_i^T,

with ``V = R W``, ``R^T R = S``, and the ridge counted in: set OBS in the metric in which the model's output feels
the error, with the same greedy order, updates and compensation. What both assumptions miss is measured for single
units without compensation, where ``E z_g^2`` is known exactly as ``probe``: the columns of unit g are scaled so that
its cost is multiplied by

    sqrt(rho rho_g),   rho_g = E z_g^2 / tr(V_g Sigma_gg V_g^T),   rho = sum_g E z_g^2 / sum_g tr(V_g Sigma_gg V_g^T),

half-way, in logarithms, between its group's factor and its own. For a unit's own factor holds for the whole of its
input and not for the residual r, which the kept columns cannot explain: where both were measured, log of the residual's
factor followed log rho_g within a group with a slope of about 0.4 (docs/studies/sink-awareness.md, try 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion, score_group
from pruning.importance.moments import (
    Weights,
    consumer_columns,
    consumer_slice,
    parameter,
    per_sample,
    unit_covariance,
    unit_energy,
)
from pruning.types import CalibrationStats, PrunableGroup


@criterion(
    "probe_obs",
    needs=("output_sensitivity", "probe_diag", "input_unit_moment", "input_sum", "row_weight", "samples"),
    base="obs",
    experts="expert_probe",
    on_device=True,
)
def probe_obs(
    group: PrunableGroup,
    weights: Weights,
    stats: CalibrationStats,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Score units by the squared change of the model's output that each adds in the greedy order of set OBS (ours).

    ``tr(V_R D_R [((Sigma + gamma I)^-1)_RR]^-1 D_R V_R^T)`` with ``V = R W``, ``R^T R = S``, and
    D^2 = sqrt(rho rho_g) on the columns of unit g; values compare across layers.
    """
    path = group.read_by.path
    weight = parameter(weights, path, group).to(device, torch.float64)
    root = _root(per_sample(group, stats, "output_sensitivity").to(device))  # (C, C)
    felt = (root @ weight.flatten(1)).view_as(weight).cpu()
    columns = consumer_columns(group, {path: felt})  # (C, P)
    expected = unit_energy(columns, unit_covariance(group, stats, columns.shape[1])).clamp(min=0)
    factor = _factors(per_sample(group, stats, "probe_diag"), expected)  # (G,)
    part = consumer_slice(group, felt)
    part *= (
        factor.sqrt().repeat_interleave(part.shape[1] // group.num_units).view(1, -1, *[1] * (part.ndim - 2))
    )
    return score_group("obs", group, {path: felt}, stats, generator, device)


def _factors(measured: Tensor, expected: Tensor) -> Tensor:
    """Return ``sqrt(rho rho_g)``; the group's factor for units of which no effect is expected, 1 if of none is."""
    if not float(expected.sum()) > 0:
        return torch.ones_like(expected)
    whole = measured.sum() / expected.sum()
    own = torch.where(expected > 0, measured / expected.where(expected > 0, 1), whole)
    return (whole * own).sqrt()


def _root(matrix: Tensor) -> Tensor:
    """Return R with ``R^T R`` a positive semi-definite matrix, rounding aside; a singular one takes longer."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not int(failed):
        return factor.mT
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0).sqrt()[:, None] * vectors.mT
