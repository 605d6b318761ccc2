"""Set OBS: the error that is left when the kept columns make up for the removed ones, in greedy order.

A wide covariance is worked on in float32 (`cholesky.precision`), which halves time and memory: the ridge bounds what is
lost, and the order is that of float64 but for units whose costs are equal to about a thousandth.

Memory beyond the statistics: one P x P matrix, in float32 where it is wide (a convolution of 1280 channels with 3 x 3
kernels has P = 11520: 0.5 GB).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.cholesky import invert, precision, ridge_cholesky
from pruning.importance.base import criterion
from pruning.importance.greedy import greedy_removal
from pruning.importance.moments import (
    Weights,
    consumer_columns,
    covariance,
    per_row,
    rounding_floor,
)
from pruning.types import CalibrationStats, PrunableGroup

RIDGE = 0.01  # gamma = RIDGE * mean(diag Sigma), as in the least-squares compensation


@criterion("obs", needs=("input_moment", "input_sum", "row_weight"), on_device=True)
def obs(
    group: PrunableGroup,
    weights: Weights,
    stats: CalibrationStats,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Score units by the squared output error that each adds in the greedy order of removal (set OBS).

    The errors are made non-decreasing without changing their sum by pooling neighbours, which is the lower convex
    envelope of the cumulative cost: a global ranking by these scores is greedy by error, and removing a group's
    lowest units follows the greedy order of that group.
    """
    columns = consumer_columns(group, weights)  # (C, P)
    dtype = precision(columns.shape[1], RIDGE)
    inverse = _inverse(group, stats, columns.shape[1], dtype, device)
    order, costs = greedy_removal(columns.to(device, dtype), inverse, group.num_units)
    return _rank_scores(order, costs)


def _inverse(
    group: PrunableGroup, stats: CalibrationStats, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return ``(Sigma + gamma I)^-1``, ``(P, P)``; `width` is P."""
    mean = per_row(group, stats, "input_sum", (width,))
    factor, _, _ = ridge_cholesky(
        lambda: covariance(group, stats, mean, dtype=dtype).to(device),
        RIDGE,
        rounding_floor(mean),
        f"group {group.name!r}",
    )
    return invert(factor)


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
