"""Greedy set OBS: the error that is left when the kept columns make up for the removed ones.

With ``A = (Sigma + gamma I)^-1`` the least squared output error of removing the columns R, the kept ones being
updated, is ``cost(R) = tr(W_R [A_RR]^-1 W_R^T)`` (Optimal Brain Surgeon, Hassibi & Stork 1993; OBS-Diff). It is
additive over a sequence of removals if after each of them W and A are downdated::

    W <- W - W_g A_gg^-1 A_g:        A <- A - A_:g A_gg^-1 A_g:

which with ``A_gg = L L^T``, ``l = A_:g L^-T`` (P, u) and ``v = W_g L^-T`` (C, u) reads ``W -= v l^T``, ``A -= l l^T``,
and the removal costs ``||v||^2``. The unit with the lowest cost goes next, so that of two heads that copy each
other one is cheap and the second expensive.

Memory: the P x P moment in float64 and about two copies while scoring (P = 5120: 0.2 GB each; a convolution of
1280 channels with 3 x 3 kernels has P = 11520: 1.1 GB each).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import criterion
from pruning.importance.moments import (
    Weights,
    consumer_columns,
    covariance,
    ridge_cholesky,
    rounding_floor,
)
from pruning.types import CalibrationStats, PrunableGroup

RIDGE = 0.01  # gamma = RIDGE * mean(diag Sigma), as in the least-squares compensation
PENDING = 64  # single-column removals that are gathered before A and W are downdated


@criterion("obs", needs=("input_moment", "input_sum", "row_weight"))
def obs(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score units by the squared output error that each adds in the greedy order of removal (set OBS).

    The errors are made non-decreasing without changing their sum by pooling neighbours, which is the lower convex
    envelope of the cumulative cost: a global ranking by these scores is greedy by error, and removing a group's
    lowest units follows the greedy order of that group.
    """
    columns = consumer_columns(group, weights)  # (C, P)
    mean, sigma = covariance(group, stats, columns.shape[1])
    factor, _, _ = ridge_cholesky(sigma, RIDGE, rounding_floor(mean), f"group {group.name!r}")
    del sigma
    order, costs = greedy_removal(columns, torch.cholesky_inverse(factor), group.num_units)
    return _rank_scores(order, costs)


def greedy_removal(columns: Tensor, inverse: Tensor, units: int) -> tuple[list[int], list[float]]:
    """Remove all units one by one, each time the one that costs least.

    Args:
        columns: Consumer weight W, ``(C, P)`` float64.
        inverse: ``(Sigma + gamma I)^-1``, ``(P, P)`` float64; overwritten.
        units: Number of units G; unit g owns columns ``[g P/G, (g + 1) P/G)``.

    Returns:
        The units in order of removal and what each removal added to the squared output error.
    """
    rows = columns.T.contiguous()  # (P, C)
    return _by_column(rows, inverse) if units == len(rows) else _by_block(rows, inverse, units)


def _by_block(rows: Tensor, inverse: Tensor, units: int) -> tuple[list[int], list[float]]:
    u = len(rows) // units
    alive = list(range(units))
    order: list[int] = []
    costs: list[float] = []
    while alive:
        n = len(alive)
        diagonal = inverse.unflatten(0, (n, u)).unflatten(2, (n, u)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        factors = torch.linalg.cholesky(diagonal)  # (n, u, u)
        whitened = torch.linalg.solve_triangular(factors, rows.unflatten(0, (n, u)), upper=False)  # (n, u, C)
        added = whitened.square().sum((1, 2))
        g = int(added.argmin())
        here = slice(g * u, (g + 1) * u)
        left = torch.linalg.solve_triangular(factors[g], inverse[here], upper=False)  # (u, n * u)
        inverse.addmm_(left.T, left, alpha=-1)
        rows.addmm_(left.T, whitened[g], alpha=-1)
        keep = torch.ones(n * u, dtype=torch.bool)
        keep[here] = False
        inverse, rows = _keep(inverse, rows, keep)
        order.append(alive.pop(g))
        costs.append(float(added[g]))
    return order, costs


def _by_column(rows: Tensor, inverse: Tensor) -> tuple[list[int], list[float]]:
    """Remove units of one column each; A and W are downdated by `PENDING` removals at once."""
    units = torch.arange(len(rows))
    keep = torch.ones(len(rows), dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    while len(rows):
        steps = min(PENDING, int(keep.sum()))
        left = torch.zeros(steps, len(rows), dtype=torch.float64)  # l of each pending removal
        moved = torch.zeros(steps, rows.shape[1], dtype=torch.float64)  # v of each pending removal
        sq_norms, diagonal = rows.square().sum(1), inverse.diagonal().clone()
        for k in range(steps):
            g = int((sq_norms.clamp(min=0) / diagonal).masked_fill_(~keep, torch.inf).argmin())
            column = inverse[g] - left[:k, g] @ left[:k]
            root = column[g].sqrt()
            left[k] = column / root
            moved[k] = (rows[g] - left[:k, g] @ moved[:k]) / root
            overlap = rows @ moved[k] - (moved[:k] @ moved[k]) @ left[:k]  # of all columns of W with v
            cost = moved[k] @ moved[k]
            sq_norms += left[k] * (left[k] * cost - 2 * overlap)
            diagonal -= left[k].square()
            keep[g] = False
            order.append(int(units[g]))
            costs.append(float(cost))
        inverse.addmm_(left.T, left, alpha=-1)
        rows.addmm_(left.T, moved, alpha=-1)
        # Gathering is expensive, so what is gone stays in place for a while.
        if int(keep.sum()) <= 0.8 * len(keep):
            inverse, rows = _keep(inverse, rows, keep)
            units, keep = units[keep], keep[keep]
    return order, costs


def _keep(inverse: Tensor, rows: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the columns of W and the rows and columns of A that are gone; indices are far faster than a mask."""
    kept = keep.nonzero().squeeze(1)
    return inverse.index_select(0, kept).index_select(1, kept), rows.index_select(0, kept)


def _rank_scores(order: list[int], costs: list[float]) -> Tensor:
    """Turn costs in order of removal into scores that rise strictly in that order.

    Pools of equal scores (pool adjacent violators) are tilted by 1e-9 of the mean cost a step, so that sorting
    the scores gives `order` back.
    """
    pools: list[tuple[float, int]] = []
    for cost in costs:
        total, size = cost, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / size:
            before = pools.pop()
            total, size = total + before[0], size + before[1]
        pools.append((total, size))
    rising = [total / size for total, size in pools for _ in range(size)]
    tilt = max(1e-9 * sum(costs) / len(costs), 1e-30) * torch.arange(len(costs))
    scores = torch.empty(len(costs), dtype=torch.float64)
    scores[torch.tensor(order)] = torch.tensor(rising, dtype=torch.float64) + tilt
    return scores
