"""What makes up for removed units at one consumer: new columns of its weight and what its bias gains.

The mathematics of docs/scores.md section 5 (see `compensation.py`), in float64, or float32 where the covariance is
wide (`cholesky.precision`); nothing is edited here. Of the P x P
moment only the parts are held that are needed: with 30 % of the columns removed, half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.cholesky import precision, ridge_cholesky
from pruning.importance.moments import (
    MOMENT,
    Weights,
    consumer_columns,
    covariance,
    no_rows,
    parameter,
    per_row,
    rounding_floor,
)
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, parameter_path

Sigma = Callable[[Tensor, Tensor], Tensor]
"""Returns the covariance between two sets of columns, given by their indices, as a new tensor."""


@dataclass(frozen=True)
class Change:
    """What compensation does at one consumer; where no row came by, there is nothing to go by: it changes nothing.

    Attributes:
        columns: What the consumer's weight becomes, ``(C, P)`` in its dtype; None if it stays.
        shift: What the bias gains, ``(C,)`` float64; None for nothing.
        ridge: The ridge used, if any.
        before: Squared output error per row without compensation; None if it is not known.
        after: And with it.
    """

    columns: Tensor | None = None
    shift: Tensor | None = None
    ridge: float | None = None
    before: float | None = 0.0
    after: float | None = 0.0


def change_at(
    group: PrunableGroup,
    weights: Weights,
    plan: PruningPlan,
    stats: CalibrationStats,
    ridge: float | None,
    device: torch.device,
) -> Change:
    """Return what compensation does at the one consumer of `group`.

    Args:
        group: A group with one consumer.
        weights: At least the consumer's weight.
        plan: What goes.
        stats: As in `compensate`, under the group's name.
        ridge: As in `compensate`, for least squares; None to fold only.
        device: Where to compute.
    """
    if no_rows(group, stats):
        return Change()
    columns = consumer_columns(group, weights)  # (C, P)
    width = columns.shape[1]
    dtype = torch.float64 if ridge is None else precision(width, ridge)
    columns = columns.to(device, dtype)
    gone = removed_columns(group, plan, width).to(device)
    mean = per_row(group, stats, "input_sum", (width,))
    # Without a bias the mean is not made up for, so moments are those about zero.
    about = torch.zeros_like(mean) if in_stack(group) else mean
    mean = mean.to(device)

    def sigma(these: Tensor, those: Tensor) -> Tensor:
        return covariance(group, stats, about, these.cpu(), those.cpu(), dtype).to(device)

    removed = gone.nonzero().squeeze(1)
    own = columns[:, removed]
    shift, before, after = own.double() @ mean[removed], None, None
    if stats.has(group.name, MOMENT):
        after = float((own @ sigma(removed, removed) * own).double().sum().clamp(min=0))
        before = after + (0.0 if in_stack(group) else float(shift.square().sum()))
    if ridge is None:
        return Change(None, _to_bias(group, shift), None, before, after)
    assert after is not None
    update, used, gain = explain(columns, sigma, gone, ridge, rounding_floor(mean), f"group {group.name!r}")
    columns[:, ~gone] += update
    own_dtype = parameter(weights, group.read_by.path, group).dtype
    shift = _to_bias(group, shift - update.double() @ mean[~gone])
    return Change(columns.to("cpu", own_dtype), shift, used, before, max(after - gain, 0.0))


def in_stack(group: PrunableGroup) -> bool:
    """Tell whether the group's one consumer is a matrix of a stack, which has no bias."""
    return parameter_path(group.read_by.path) != group.read_by.path


def removed_columns(group: PrunableGroup, plan: PruningPlan, width: int) -> Tensor:
    """Return which of the `width` = P columns of the group's consumer weight go, bool (P,)."""
    gone = torch.zeros(group.num_units, dtype=torch.bool)
    gone[list(plan.removed_units(group))] = True
    return gone.repeat_interleave(width // group.num_units)


def explain(
    columns: Tensor, sigma: Sigma, gone: Tensor, ridge: float, floor: float, where: str
) -> tuple[Tensor, float, float]:
    """Let the kept columns stand in for the removed ones, as far as they predict them.

    Args:
        columns: W, ``(C, P)``, float32 or float64.
        sigma: Covariance of the rows, in the same dtype.
        gone: Which columns go, bool ``(P,)``.
        ridge: As in `ridge_cholesky`, as are `floor` and `where`.
        floor: Variance below which there is nothing but rounding.
        where: What the columns belong to.

    Returns:
        What the kept columns gain, dW ``(C, K)``; the ridge used; and by how much the squared output error falls.
    """
    kept, removed = (~gone).nonzero().squeeze(1), gone.nonzero().squeeze(1)
    wanted = columns[:, removed] @ sigma(removed, kept)  # (C, K)
    factor, used, gamma = ridge_cholesky(lambda: sigma(kept, kept), ridge, floor, where)
    update = torch.linalg.solve_triangular(factor, wanted, upper=True, left=False)
    update = torch.linalg.solve_triangular(factor.mT, update, upper=False, left=False)  # (C, K)
    # tr(dW Sigma_KK dW^T) is tr(dW wanted) - gamma ||dW||^2, as dW solves the system.
    gain = float((update * wanted).double().sum() + gamma * update.double().square().sum())
    return update, used, gain


def _to_bias(group: PrunableGroup, shift: Tensor) -> Tensor | None:
    return None if in_stack(group) else shift.cpu()
