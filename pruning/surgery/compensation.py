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

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.importance import CRITERIA, needs_of
from pruning.importance.moments import (
    MOMENT,
    Weights,
    consumer_slice,
    moment_by_rows,
    moment_bytes,
    no_rows,
    per_row,
    with_room,
)
from pruning.registry import unknown
from pruning.settings import COMPENSATIONS
from pruning.surgery.check import check_plan
from pruning.surgery.least_squares import Change, change_at, in_stack
from pruning.threads import side_by_side
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, matrix_of, parameter_path

WORKING = 1.25  # times the largest moment in float64 is what a group needs

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
    weights: nn.Module | MutableMapping[str, Tensor],
    groups: Sequence[PrunableGroup],
    plan: PruningPlan,
    stats: CalibrationStats,
    method: str = "none",
    ridge: float = 0.01,
    *,
    model: nn.Module | None = None,
    memory: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, Any]]:
    """Compensate in place, in the dense weights, for what `plan` removes; nothing removed changes nothing.

    Groups are computed side by side, each in one of torch's threads, and edited one after the other.

    Args:
        weights: The dense model, or its parameters by path, any float dtype (kept). A model's parameters are edited in
            place; of a mapping, each is read when its group's turn comes, and what it becomes, a new contiguous tensor,
            is assigned before the next group is edited, so that parameters may lie on the disk.
        groups: All groups of the model, as `find_groups` gives them.
        plan: What goes. Groups inside removed blocks and experts are skipped; nothing makes up for whole experts.
        stats: Plain sums of a calibration run with at least `compensation_needs(method)`; never written to.
        method: ``none``, ``fold`` or ``least_squares``.
        ridge: lambda, a share of the mean variance of the kept columns, at least 0; raised, with a warning, for a
            group whose covariance is singular.
        model: For a mapping, the model that it is of, which may be on the meta device: where biases may be created.
        memory: Bytes that may be used beyond what is held already; None for most of what is free.
        device: Where the mathematics runs, in float64, as far as a group's matrices fit there.

    Returns:
        For each compensated group JSON types: ``method``, ``removed_units``, ``ridge`` (the largest used; None for
        fold), ``error_before`` and ``error_after`` (squared output error per calibration row, summed over the
        consumers) and ``error_removed`` (1 - after / before). The errors are None where `input_moment` was not
        gathered.

    Raises:
        PruningError: For an unknown method, a negative ridge, a mapping without `model`, a plan that does not fit, a
            statistic that is missing or does not fit, or a consumer without a bias slot; all before the weights are
            touched, except for a covariance that no ridge helps.
    """
    needs = compensation_needs(method)
    if not ridge >= 0:
        raise PruningError(f"compensation ridge is {ridge}; it must be at least 0")
    model = weights if isinstance(weights, nn.Module) else model
    if model is None:
        raise PruningError(
            "compensation of weights by path needs `model`, the model that they are of; it may be on the meta device"
        )
    check_plan(model, groups, plan)
    if method == "none":
        return {}
    affected = [group for group in plan.cuts(groups) if group.consumers]
    for one in [one for group in affected for one in group.consumers]:
        _check(model, one, stats.of(one), method, needs)
    edited, device = _Edited(weights, model), torch.device(device)
    shrinkage = ridge if method == "least_squares" else None

    def jobs() -> Iterator[tuple[int, Callable[[], list[Change]]]]:
        for group in affected:
            need = int(WORKING * moment_bytes(group, stats))
            read = {parameter_path(one.read_by.path) for one in group.consumers}
            own, place = {path: edited[path] for path in read}, with_room(device, need)
            yield need, partial(_changes, group, own, plan, stats, shrinkage, place)

    found = side_by_side(jobs(), memory, None if device.type == "cpu" else 1)
    report = {}
    for group, changes in zip(affected, found, strict=True):
        _apply(edited, group, plan, changes)
        report[group.name] = _report(group, plan, method, changes)
    return report


@dataclass(frozen=True)
class _Edited:
    """Parameters by path that are edited: those of a module in place, those of a mapping by assignment."""

    held: nn.Module | MutableMapping[str, Tensor]
    model: nn.Module

    def __getitem__(self, path: str) -> Tensor:
        return self.held.get_parameter(path) if isinstance(self.held, nn.Module) else self.held[path]

    @contextmanager
    def editing(self, path: str) -> Iterator[Tensor]:
        """Give the parameter at `path`, which is edited in place in this context."""
        if isinstance(self.held, nn.Module):
            yield self.held.get_parameter(path)
            return
        own = self.held[path].detach().clone(memory_format=torch.contiguous_format)
        yield own
        self.held[path] = own

    def add_bias(self, group: PrunableGroup) -> None:
        """Let the group's consumer have a bias, of zeros in the dtype of its weight if there is none."""
        path, module = f"{group.consumer}.bias", self.model.get_submodule(group.consumer)
        if isinstance(self.held, nn.Module):
            weight = module.weight
            assert isinstance(weight, Tensor)
            if module.bias is None:
                zeros = weight.new_zeros(weight.shape[0])
                module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        elif path not in self.held:
            weight = self.held[f"{group.consumer}.weight"]
            self.held[path] = weight.new_zeros(weight.shape[0])


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
    if not (hasattr(consumer, "bias") or in_stack(group)):
        raise PruningError(
            f"compensation {method!r} of group {group.name!r}: {type(consumer).__name__} at {group.consumer!r} has "
            "no bias to fold into; use compensation 'none' or keep this group"
        )
    path = group.read_by.path
    weight = matrix_of(model.get_parameter(parameter_path(path)), path)
    width = consumer_slice(group, weight)[0].numel()
    found = {"input_sum": per_row(group, stats, "input_sum", (width,))}
    if stats.has(group.name, MOMENT):
        # The square of an input that is not finite is not finite either: the whole moment need not be read.
        found[MOMENT] = moment_by_rows(group, stats, width)[1].diagonal()
    for name, value in found.items():
        if not bool(value.isfinite().all()):
            raise PruningError(
                f"compensation {method!r} of group {group.name!r}: the statistic {name!r} is not finite; the "
                "calibration data or the model is broken"
            )


def _changes(
    group: PrunableGroup,
    weights: Weights,
    plan: PruningPlan,
    stats: CalibrationStats,
    ridge: float | None,
    device: torch.device,
) -> list[Change]:
    """Return what compensation does at every consumer of `group`."""
    return [change_at(one, weights, plan, stats.of(one), ridge, device) for one in group.consumers]


def _apply(weights: _Edited, group: PrunableGroup, plan: PruningPlan, changes: Sequence[Change]) -> None:
    """Edit what reads `group`: the kept columns and the bias change, the removed columns are zeroed."""
    by_entry = {one.read_by: change for one, change in zip(group.consumers, changes, strict=True)}
    for part in group.consumed_by:
        with weights.editing(part.path) as parameter:
            for entry in part.entries:
                columns = by_entry[entry].columns
                if columns is not None:
                    own = consumer_slice(
                        replace(group, consumed_by=(entry,)), matrix_of(parameter, entry.path)
                    )
                    own.copy_(columns.unflatten(1, own.shape[1:]))
            gone = part.indices(plan.removed_units(group))
            parameter.index_fill_(part.dim, gone.to(parameter.device), 0.0)
    for one, change in zip(group.consumers, changes, strict=True):
        if change.shift is not None:
            weights.add_bias(one)
            with weights.editing(f"{one.consumer}.bias") as bias:
                bias.copy_(bias.to("cpu", torch.float64) + change.shift)


def _report(
    group: PrunableGroup, plan: PruningPlan, method: str, changes: Sequence[Change]
) -> dict[str, Any]:
    errors = [(one.before, one.after) for one in changes if one.before is not None and one.after is not None]
    before = after = removed = None
    if len(errors) == len(changes):
        before, after = (sum(parts) for parts in zip(*errors, strict=True))
        removed = 1.0 - after / before if before > 0 else 0.0
    return {
        "method": method,
        "removed_units": len(plan.removed_units(group)),
        "ridge": max((one.ridge for one in changes if one.ridge is not None), default=None),
        "error_before": before,
        "error_after": after,
        "error_removed": removed,
    }
