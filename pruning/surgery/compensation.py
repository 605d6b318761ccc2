"""Let what stays make up for what goes: bias folding and least squares (docs/scores.md section 5).

Both edit every consumer of a group in the *dense* model, before the cut, and zero the removed columns R, so that a
second time changes nothing; `apply_plan` drops them. Rows are the plain calibration rows, never weighted ones:
weightings rank units, they do not say which error counts.

- ``fold``: ``b += W_R mu_R``; the removed units are replaced by their means.
- ``least_squares``: ``W_K += dW`` with ``dW = W_R Sigma_RK (Sigma_KK + lambda mean(diag Sigma_KK) I)^-1``, and
  ``b += W_R mu_R - dW mu_K``; the removed units are replaced by what the kept ones predict of them. The ridge
  pulls towards the old weights.

A folded convolution takes the mean over its unfolded columns, zero padding included, so at the borders the fold is
right on average only. A group that several modules read (joint attention) is compensated in each of them, with that
one's own moments. The matrices of a stack (experts) have no bias: least squares goes about zero there instead of about
the mean, ``dW = W_R H_RK (H_KK + lambda mean(diag H_KK) I)^-1``, and folding changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.importance import CRITERIA, needs_of
from pruning.importance.moments import (
    consumer_columns,
    consumer_slice,
    covariance,
    no_rows,
    per_row,
    ridge_cholesky,
    rounding_floor,
)
from pruning.registry import unknown
from pruning.settings import COMPENSATIONS
from pruning.surgery.check import check_plan
from pruning.surgery.mask import silence
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, matrix_of, parameter_path

NEEDS = {
    "none": frozenset[str](),
    "fold": frozenset({"input_sum", "row_weight"}),
    "least_squares": frozenset({"input_moment", "input_sum", "row_weight"}),
}


def compensation_needs(method: str) -> set[str]:
    """Return the names of the statistics that `method` reads.

    Raises:
        PruningError: For an unknown method.
    """
    if method not in COMPENSATIONS:
        raise PruningError(f"unknown compensation {method!r}; valid: {', '.join(COMPENSATIONS)}")
    return set(NEEDS[method])


def needs_for(names: Iterable[str], groups: Sequence[PrunableGroup]) -> tuple[set[str], set[str]]:
    """Return what to calibrate for criteria and compensations: names of statistics, and variants of weighted rows.

    Raises:
        PruningError: For a name that is neither a criterion nor a compensation.
    """
    needs, variants = set[str](), set[str]()
    for name in [names] if isinstance(names, str) else names:
        if name in COMPENSATIONS:
            needs |= compensation_needs(name)
        elif name in CRITERIA:
            needs |= needs_of(name, groups)
            variants |= {CRITERIA[name].weighting} - {"off"}
        else:
            raise PruningError(
                f"{unknown('criterion', name, CRITERIA)}; compensations: {', '.join(COMPENSATIONS)}"
            )
    return needs, variants


@torch.no_grad()
def compensate(
    model: nn.Module,
    groups: Sequence[PrunableGroup],
    plan: PruningPlan,
    stats: CalibrationStats,
    method: str = "none",
    ridge: float = 0.01,
) -> dict[str, dict[str, Any]]:
    """Compensate in place, in the dense `model`, for what `plan` removes; nothing removed changes nothing.

    Args:
        model: The dense model, any float dtype (kept); the mathematics runs in float64 on the CPU.
        groups: All groups of the model, as `find_groups` gives them.
        plan: What goes. Groups inside removed blocks and experts are skipped; nothing makes up for whole experts.
        stats: Plain sums of a calibration run with at least `compensation_needs(method)`.
        method: ``none``, ``fold`` or ``least_squares``.
        ridge: lambda, a share of the mean variance of the kept columns, at least 0; raised, with a warning, for a
            group whose covariance is singular.

    Returns:
        For each compensated group JSON types: ``method``, ``removed_units``, ``ridge`` (the largest used; None for
        fold), ``error_before`` and ``error_after`` (squared output error per calibration row, summed over the
        consumers) and ``error_removed`` (1 - after / before). The errors are None where `input_moment` was not
        gathered.

    Raises:
        PruningError: For an unknown method, a negative ridge, a plan that does not fit, a statistic that is missing
            or does not fit, or a consumer without a bias slot; all before the model is touched, except for a
            covariance that no ridge helps.
    """
    needs = compensation_needs(method)
    if not ridge >= 0:
        raise PruningError(f"compensation ridge is {ridge}; it must be at least 0")
    check_plan(model, groups, plan)
    if method == "none":
        return {}
    affected = [group for group in plan.cuts(groups) if group.consumers]
    for one in [one for group in affected for one in group.consumers]:
        _check(model, one, stats.of(one), method, needs)
    report = {group.name: _compensate_group(model, group, plan, stats, method, ridge) for group in affected}
    silence(model, affected, plan)
    return report


def _check(
    model: nn.Module, group: PrunableGroup, stats: CalibrationStats, method: str, needs: set[str]
) -> None:
    missing = sorted(need for need in needs if not stats.has(group.name, need))
    if missing:
        raise PruningError(
            f"compensation {method!r} of group {group.name!r} needs the statistic {missing[0]!r}, which was not "
            f"gathered; calibrate with {', '.join(sorted(needs))}"
        )
    if no_rows(group, stats):
        return
    consumer = model.get_submodule(group.consumer)
    if not (hasattr(consumer, "bias") or _in_stack(group)):
        raise PruningError(
            f"compensation {method!r} of group {group.name!r}: {type(consumer).__name__} at {group.consumer!r} has "
            "no bias to fold into; use compensation 'none' or keep this group"
        )
    width = _columns(model, group).shape[1]
    shapes = {"input_sum": (width,), "input_moment": (width, width)}
    for name in (name for name in shapes if stats.has(group.name, name)):
        if not bool(per_row(group, stats, name, shapes[name]).isfinite().all()):
            raise PruningError(
                f"compensation {method!r} of group {group.name!r}: the statistic {name!r} is not finite; the "
                "calibration data or the model is broken"
            )


def _columns(model: nn.Module, group: PrunableGroup) -> Tensor:
    path = parameter_path(group.read_by.path)
    return consumer_columns(group, {path: model.get_parameter(path)})  # (C, P)


def _in_stack(group: PrunableGroup) -> bool:
    """Tell whether the group's one consumer is a matrix of a stack."""
    return parameter_path(group.read_by.path) != group.read_by.path


def _compensate_group(
    model: nn.Module,
    group: PrunableGroup,
    plan: PruningPlan,
    stats: CalibrationStats,
    method: str,
    ridge: float,
) -> dict[str, Any]:
    """Compensate at every consumer of `group`; returns its report."""
    found = [_at_consumer(model, one, plan, stats.of(one), method, ridge) for one in group.consumers]
    ridges = [used for used, _, _ in found if used is not None]
    errors = [(before, after) for _, before, after in found if before is not None and after is not None]
    before = after = removed = None
    if len(errors) == len(found):
        before, after = (sum(parts) for parts in zip(*errors, strict=True))
        removed = 1.0 - after / before if before > 0 else 0.0
    return {
        "method": method,
        "removed_units": len(plan.removed_units(group)),
        "ridge": max(ridges, default=None),
        "error_before": before,
        "error_after": after,
        "error_removed": removed,
    }


def _at_consumer(
    model: nn.Module,
    group: PrunableGroup,
    plan: PruningPlan,
    stats: CalibrationStats,
    method: str,
    ridge: float,
) -> tuple[float | None, float | None, float | None]:
    """Compensate at the one consumer of `group`; returns the ridge used, and the error before and after.

    Where no row came by there is nothing to go by, and nothing changes.
    """
    if no_rows(group, stats):
        return None, 0.0, 0.0
    columns = _columns(model, group)
    width = columns.shape[1]
    gone = removed_columns(group, plan, width)
    if stats.has(group.name, "input_moment"):
        mean, sigma = covariance(group, stats, width)
    else:
        mean, sigma = per_row(group, stats, "input_sum", (width,)), None
    if _in_stack(group):  # without a bias the mean is not made up for, so moments are those about zero
        sigma = None if sigma is None else sigma.addr_(mean, mean)
        mean = torch.zeros_like(mean)
    shift = columns[:, gone] @ mean[gone]
    update, used = None, None
    if method == "least_squares":
        assert sigma is not None
        update, used = explain(columns, sigma, gone, ridge, mean, f"group {group.name!r}")
        shift = shift - update @ mean[~gone]
        summed = columns.clone()
        summed[:, ~gone] += update
        path = group.read_by.path
        part = consumer_slice(group, matrix_of(model.get_parameter(parameter_path(path)), path))
        part.copy_(summed.unflatten(1, part.shape[1:]))
    if not _in_stack(group):
        _add_to_bias(model.get_submodule(group.consumer), shift)
    return used, *_errors(columns, mean, sigma, gone, update)


def removed_columns(group: PrunableGroup, plan: PruningPlan, width: int) -> Tensor:
    """Return which of the `width` = P columns of the group's consumer weight go, bool (P,)."""
    gone = torch.zeros(group.num_units, dtype=torch.bool)
    gone[list(plan.removed_units(group))] = True
    return gone.repeat_interleave(width // group.num_units)


def explain(
    columns: Tensor, sigma: Tensor, gone: Tensor, ridge: float, mean: Tensor, where: str
) -> tuple[Tensor, float]:
    """Return dW ``(C, K)``, what the kept columns must add to stand in for the removed ones, and the ridge used."""
    factor, used, _ = ridge_cholesky(sigma[~gone][:, ~gone], ridge, rounding_floor(mean), where)
    wanted = sigma[~gone][:, gone] @ columns[:, gone].T  # (K, C)
    return torch.cholesky_solve(wanted, factor).T, used


def _add_to_bias(module: nn.Module, shift: Tensor) -> None:
    """Add `shift` (C,) to the module's bias; one is created, in the dtype of the weight, if there is none."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if module.bias is None:
        module.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)
    bias = module.bias
    assert isinstance(bias, Tensor)
    bias.copy_(bias.to("cpu", torch.float64) + shift)


def residual(columns: Tensor, gone: Tensor, update: Tensor | None) -> Tensor:
    """Return the columns (C, P) by which the compensated output falls short: it lacks ``residual @ (x - mu)``."""
    left = torch.zeros_like(columns)
    left[:, gone] = columns[:, gone]
    if update is not None:
        left[:, ~gone] = -update
    return left


def _errors(
    columns: Tensor, mean: Tensor, sigma: Tensor | None, gone: Tensor, update: Tensor | None
) -> tuple[float | None, float | None]:
    """Return E||W_R x_R||^2 and what is left of it, from centred moments; None where there are none."""
    if sigma is None:
        return None, None

    def error(left: Tensor) -> float:
        return float(((left @ sigma) * left).sum().clamp(min=0))

    folded = error(residual(columns, gone, None))
    before = folded + float((columns[:, gone] @ mean[gone]).square().sum())
    return before, folded if update is None else error(residual(columns, gone, update))
