"""From scores to a plan that hits its target.

All groups go down their ladders (`pruning.allocation.ladder`) in steps, and the steps of all groups are sorted by
price. The plan is the start of this list after which the cost comes nearest to the goal: its length is found by
bisection, for the cost falls with every step, and then single later steps are tried where one was too coarse.
Bounds on time or memory, and several at once, are `pruning.allocation.several`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruning.allocation.budget import TOLERANCE, check_limits, sizes
from pruning.allocation.cost import CostModel
from pruning.allocation.costs import Bound, Cost, as_asked, costs_of
from pruning.allocation.ladder import Ladder, global_prices, have_a_zero, local_prices
from pruning.allocation.several import by_knapsack, explain, in_order, largest_share, refuse
from pruning.errors import PruningError
from pruning.groups.experts import EXPERTS
from pruning.settings import Prune, Target
from pruning.types import PrunableGroup, PruningPlan, Scores

logger = logging.getLogger(__name__)

NEAR = TOLERANCE / 4
"""A plan this near to the goal (relative) is not improved further."""

Rungs = list[int]
"""How far down each ladder is taken."""


def allocate(
    groups: Sequence[PrunableGroup],
    scores: Scores | None,
    cost: CostModel,
    settings: Prune,
    *,
    start: PruningPlan | None = None,
    blocks: Sequence[str] | None = None,
    measured: Mapping[str, Cost] | None = None,
) -> PruningPlan:
    """Decide which units stay so that the target is hit; deterministic.

    Args:
        groups: What may be removed.
        scores: Importance of every unit of `groups`; None removes the last units of each group (``local``
            only): the uniform plan that a dry run shows.
        cost: Predicts MACs and parameters of plans.
        settings: Target, scope, rounding and limits. In global scope scores of which some are negative are compared
            undivided whatever `per_cost` says, and a warning says so.
        start: What is decided already: the model's hash, and weights that take a smaller form. It counts towards the
            target, but for a ratio, which is of the units alone.
        blocks: Paths of the blocks that go, which is decided then, limits or not; the units outside them make up the
            rest. None: scores decide on blocks, too.
        measured: The costs that a target of time (``latency``) or memory (``memory``) bounds, by key.

    Returns:
        The plan; ``meta`` holds what was asked and what was got, in global scope also whether scores were divided.
        Under bounds on time or memory, or several at once, also ``targets``: of each its goal, what the plan comes to
        by prediction, and what the dense model does; ``goal`` and ``got`` are of the one that binds; and ``solver``:
        the method and, of a knapsack, how much of all scores goes, the bound of its relaxation and the gap between.

    Raises:
        PruningError: If the target lies below what the limits allow (the message names the least feasible).
    """
    _check(groups, scores, settings, blocks)
    target, scope = settings.target, settings.scope
    costs = cost.unit_costs(target.measure)
    if foreign := [group.name for group in groups if group.name not in costs]:
        raise PruningError(
            f"the cost model was not traced with the group {foreign[0]!r}; is it of another model?"
        )
    start = start or PruningPlan()
    decided = replace(start, removed_blocks=tuple(blocks or ())).completed(groups)
    left = groups if blocks is None else [group for group in groups if group.kind != "blocks"]
    left = [group for group in left if not decided.removes(group.module)]
    bounds = [] if target.is_counted_alone else _bounds(target, groups, cost, start, measured or {})
    ladders = [Ladder.of(g, scores, _known(bounds, g, sizes(g, settings)), costs[g.name]) for g in left]
    how = {}
    if scores and scope == "global":
        how = {"per_cost": settings.per_cost and have_a_zero(ladders, scores)}
    if bounds:
        return _under(bounds, ladders, decided, settings, how, cost)
    steps = _steps(global_prices(ladders, **how) if how else local_prices(ladders))
    total = cost.macs if target.measure == "macs" else cost.params
    goal = _goal(target, groups, cost, start)

    def measure(rungs: Rungs) -> int:
        return total(_plan(decided, ladders, rungs, sizes_only=True))

    rungs = _nearest(ladders, steps, measure, goal)
    plan = _plan(decided, ladders, rungs)
    got = total(plan)
    hit = abs(got - goal) <= TOLERANCE * goal
    if not hit and ladders:  # else there is nothing left to decide
        least = measure([len(ladder.sizes) - 1 for ladder in ladders])
        _explain(target, goal, got=got, least=least, dense=total(), any_go=any(rungs))
    meta = {
        "asked": str(target),
        "target": {"macs": target.macs, "params": target.params, "ratio": target.ratio},
        "scope": scope,
        **how,
        "hit": hit,
        "goal": goal,
        "got": got,
        "macs": {"dense": cost.macs(), "plan": cost.macs(plan)},
        "params": {"dense": cost.params(), "plan": cost.params(plan)},
    }
    return replace(plan, meta=meta)


def _under(
    bounds: Sequence[Bound],
    ladders: Sequence[Ladder],
    decided: PruningPlan,
    settings: Prune,
    how: dict[str, bool],
    cost: CostModel,
) -> PruningPlan:
    """Return the plan under which all bounds hold; see `allocate`."""

    def planned(rungs: Rungs) -> PruningPlan:
        return _plan(decided, ladders, rungs, sizes_only=True)

    prices = global_prices(ladders, **how) if how else local_prices(ladders)
    found = in_order(ladders, _steps(prices).tolist(), bounds, planned)
    if how.get("per_cost"):
        found = by_knapsack(ladders, bounds, planned, decided, found and found.rungs) or found
    if found is None:
        refuse(bounds, planned([len(ladder.sizes) - 1 for ladder in ladders]))
    assert found is not None
    plan = _plan(decided, ladders, found.rungs)
    worst = largest_share(bounds, plan)
    binding = max(bounds, key=lambda bound: bound.share(plan))
    hit = 1 - TOLERANCE <= worst <= 1 + TOLERANCE
    if not hit and ladders:
        explain(bounds, plan)
    meta = {
        "asked": str(settings.target),
        "target": settings.target.given,
        "scope": settings.scope,
        **how,
        "hit": hit,
        "goal": binding.goal,
        "got": binding.cost.total(plan),
        "targets": {bound.key: _row(bound, plan, binds=bound is binding) for bound in bounds},
        "solver": found.solver,
        "macs": {"dense": cost.macs(), "plan": cost.macs(plan)},
        "params": {"dense": cost.params(), "plan": cost.params(plan)},
    }
    return replace(plan, meta=meta)


def _row(bound: Bound, plan: PruningPlan, *, binds: bool) -> dict[str, Any]:
    """Return what a plan says of a target (JSON types); ``said`` in words."""
    row: dict[str, Any] = {
        "asked": bound.asked,
        "cost": bound.cost.key,
        "unit": bound.cost.unit,
        "goal": bound.goal,
        "predicted": float(bound.cost.total(plan)),
        "dense": float(bound.cost.total()),
        "binds": binds,
    }
    return {**row, "said": {"predicted": as_asked(row, row["predicted"])}}


def _known(bounds: Sequence[Bound], group: PrunableGroup, sizes: Sequence[int]) -> Sequence[int]:
    """Return the sizes whose costs are known, all where these are none but the dense one."""
    for bound in bounds:
        if (known := bound.cost.known(group)) is not None:
            left = [size for size in sizes if size in known]
            sizes = left if len(left) > 1 else sizes
    return sizes


def _bounds(
    target: Target,
    groups: Sequence[PrunableGroup],
    cost: CostModel,
    start: PruningPlan,
    measured: Mapping[str, Cost],
) -> list[Bound]:
    """Return what the target bounds, and by how much."""
    costs, words, found = costs_of(cost, measured), target.words(), []
    of = {"latency": "latency", "latency_ms": "latency", "memory_gb": "memory", "ratio": "params"}
    for key, value in target.given.items():
        kind = of.get(key, key)
        if kind not in costs:
            raise PruningError(
                f"target {words[key]}: no {'table of times' if kind == 'latency' else 'model of memory'} was given, "
                "which belongs to a device; a recipe measures it (prune.target)"
            )
        if key == "ratio":
            goal = _goal(Target(ratio=value), groups, cost, start)
        elif key == "latency_ms":
            goal = value / 1e3
        elif key == "memory_gb":
            goal = value * 1e9
        else:
            goal = value * costs[kind].total()
        found.append(Bound(key, words[key], costs[kind], float(goal)))
    return found


def _check(
    groups: Sequence[PrunableGroup], scores: Scores | None, settings: Prune, blocks: Sequence[str] | None
) -> None:
    settings.check("allocation")
    if twice := [name for name, count in Counter(group.name for group in groups).items() if count > 1]:
        raise PruningError(f"the group {twice[0]!r} is given twice")
    check_limits(groups, settings.limits)
    known = {group.module for group in groups if group.kind == "blocks"}
    if strange := [path for path in blocks or () if path not in known]:
        raise PruningError(f"the block {strange[0]!r} that is to go is none of the given groups")
    if scores is None:
        if settings.scope == "global":
            raise PruningError("scope 'global' compares scores across groups, but no scores were given")
        return
    scores.check(groups)


def _goal(target: Target, groups: Sequence[PrunableGroup], cost: CostModel, start: PruningPlan) -> float:
    """Return the MACs or parameters to come to."""
    if target.ratio is not None:
        return cost.params(start) - target.ratio * prunable(groups, cost, "params")
    if target.macs is not None:
        return target.macs * cost.macs()
    assert target.params is not None
    return target.params * cost.params()


def prunable(groups: Sequence[PrunableGroup], cost: CostModel, measure: str) -> float:
    """Return what all units cost, as ``"macs"`` or ``"params"``.

    Those inside a block or an expert that is a unit itself count once.
    """
    units = cost.unit_costs(measure)
    blocks = [group for group in groups if group.kind == "blocks"]
    experts = [group for group in groups if group.kind == EXPERTS]

    def nested(group: PrunableGroup) -> bool:
        others = tuple(path for block in blocks if block is not group for path in block.paths)
        held = (
            group.consumed_by
            and measure == "params"
            and any(one.holds(group.consumed_by[0].path) for one in experts)
        )
        return bool(held) or PruningPlan(removed_blocks=others).removes(group.module)

    return sum(units[group.name] * group.num_units for group in groups if not nested(group))


def _steps(prices: Sequence[Tensor]) -> Tensor:
    """Return which ladder goes down one rung at each step, the cheapest first, as int64 (steps,)."""
    owners = torch.repeat_interleave(torch.tensor([len(own) for own in prices], dtype=torch.int64))
    return owners[torch.sort(torch.cat([torch.empty(0), *prices]), stable=True).indices]


def _nearest(ladders: Sequence[Ladder], steps: Tensor, measure: Callable[[Rungs], int], goal: float) -> Rungs:
    """Take steps until the goal is passed, then settle on the rungs that come nearest to it."""

    def after(count: int) -> Rungs:
        return torch.bincount(steps[:count], minlength=len(ladders)).tolist()

    low, high = 0, len(steps)
    while low < high:  # the cost falls with every step
        middle = (low + high) // 2
        low, high = (low, middle) if measure(after(middle)) <= goal else (middle + 1, high)
    if low == 0:
        return after(0)
    refined = _refine(ladders, after(low - 1), steps[low - 1 :], measure, goal)
    return min(after(low), refined, key=lambda rungs: abs(measure(rungs) - goal))


def _refine(
    ladders: Sequence[Ladder],
    rungs: Rungs,
    steps: Tensor,
    measure: Callable[[Rungs], int],
    goal: float,
) -> Rungs:
    """Come nearer to the goal from above: one rung may be coarse (a block, a head), a later one finer."""
    reached = measure(rungs)
    for index in steps.tolist():
        if rungs[index] + 1 == len(ladders[index].sizes):
            continue
        if reached - ladders[index].freed(rungs[index]) < goal * (1 - NEAR):
            continue
        trial = [rung + (place == index) for place, rung in enumerate(rungs)]
        cost = measure(trial)
        if abs(cost - goal) < abs(reached - goal):
            rungs, reached = trial, cost
        if abs(reached - goal) <= NEAR * goal:
            break
    return rungs


def _plan(
    decided: PruningPlan, ladders: Sequence[Ladder], rungs: Rungs, *, sizes_only: bool = False
) -> PruningPlan:
    """Return the plan of these rungs on top of what is decided; units in a removed block are not planned.

    With `sizes_only` the kept units are any, as many as they are: a cost asks for no more, but of modules in a list.
    """
    down = [(ladder, rung) for ladder, rung in zip(ladders, rungs, strict=True) if rung]
    gone = {*decided.removed_blocks, *(ladder.group.module for ladder, _ in down if ladder.is_block)}
    blocks = replace(decided, removed_blocks=tuple(sorted(gone))).completed(
        ladder.group for ladder in ladders
    )
    kept = {
        ladder.group.name: (0,) * ladder.sizes[rung]
        if sizes_only and not ladder.group.lists
        else ladder.kept(rung)
        for ladder, rung in down
        if not (ladder.is_block or blocks.removes(ladder.group.module))
    }
    return replace(blocks, kept=kept)


def _explain(target: Target, goal: float, *, got: int, least: int, dense: int, any_go: bool) -> None:
    """Warn that the target was not hit; refuse when it lies below what the limits allow."""
    unit = "MACs" if target.measure == "macs" else "parameters"
    if goal < least:
        raise PruningError(
            f"target {target}: needs {goal:,.0f} {unit}, but with these kinds, round_to, min_units and limits the "
            f"least reachable is {least:,} ({least / dense:.4f} of the dense {dense:,}); ask for at least that, "
            "or allow more kinds or blocks"
        )
    alone = "; what is decided already frees more than asked" if got < goal and not any_go else ""
    logger.warning(
        "target %s cannot be hit within %.0f %%: asked %s %s, nearest feasible %s (%.4f of dense)%s",
        target,
        100 * TOLERANCE,
        f"{goal:,.0f}",
        unit,
        f"{got:,}",
        got / dense,
        alone,
    )
