"""From scores to a plan that hits its target.

Both scopes walk the same ladder: every group has an ordered list of sizes it may keep, and each rung down
removes its least important remaining units. ``global`` takes the cheapest rung anywhere (by score, or by score
per cost freed); ``local`` takes every group down in step. The walk stops at the rung nearest to the target.

A score per cost means something only where 0 means "costs nothing". Scores that go below zero (standardised ones,
negated ones) have no such zero: divided by a cost, the worst would look the better the dearer they are. They are
compared as they are.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning.allocation.budget import TOLERANCE, Limit, Target, check_limits, sizes
from pruning.allocation.cost import CostModel
from pruning.errors import PruningError
from pruning.types import PrunableGroup, PruningPlan, Scores

logger = logging.getLogger(__name__)

ROUNDING = 1e-9
"""Scores below zero by no more than this share of the largest magnitude count as 0."""


@dataclass(frozen=True)
class _Ladder:
    """The ways down of one group."""

    group: PrunableGroup
    sizes: list[int]  # units kept at each rung, from all downwards
    order: list[int]  # units, least important first
    scores: list[float]  # their scores
    unit_cost: float

    def rung_score(self, rung: int) -> float:
        """Sum of the scores of the units that go between `rung` and the next."""
        total = self.group.num_units
        return sum(self.scores[total - self.sizes[rung] : total - self.sizes[rung + 1]])

    def rung_cost(self, rung: int) -> float:
        return (self.sizes[rung] - self.sizes[rung + 1]) * self.unit_cost


def allocate(
    groups: Sequence[PrunableGroup],
    scores: Scores | None,
    cost: CostModel,
    *,
    target: Target,
    scope: str = "global",
    per_cost: bool = True,
    round_to: int = 1,
    min_units: int = 1,
    limits: Sequence[Limit] = (),
    base_hash: str = "",
) -> PruningPlan:
    """Decide which units stay so that the target is hit; deterministic.

    Args:
        groups: What may be removed.
        scores: Importance of every unit of `groups`; None removes the last units of each group (``local``
            only): the uniform plan that a dry run shows.
        cost: Predicts MACs and parameters of plans.
        target: What to hit.
        scope: ``"global"`` compares scores across groups; ``"local"`` takes the same fraction from each.
        per_cost: In global scope, divide scores by the cost that their removal frees. Scores of which some are
            negative are compared undivided, and a warning says so.
        round_to: Kept channels are multiples of it.
        min_units: Fewest units a group keeps.
        limits: Further bounds by kind or name.
        base_hash: Stored in the plan.

    Returns:
        The plan; ``meta`` holds what was asked and what was got, in global scope also whether scores were divided.

    Raises:
        PruningError: If the target lies below what the limits allow (the message names the least feasible).
    """
    _check(groups, scores, scope, round_to, min_units, limits)
    costs = cost.unit_costs(target.measure)
    if foreign := [group.name for group in groups if group.name not in costs]:
        raise PruningError(
            f"the cost model was not traced with the group {foreign[0]!r}; is it of another model?"
        )
    ladders = [_ladder(g, scores, costs[g.name], sizes(g, round_to, min_units, limits)) for g in groups]
    measure = cost.macs if target.measure == "macs" else cost.params
    dense, goal = measure(), _goal(target, groups, cost, measure)
    per_cost = per_cost and scope == "global" and _have_a_zero(ladders, scores)
    walk = _global(ladders, per_cost) if scope == "global" else _local(ladders)
    rungs = _nearest(ladders, walk, measure, goal)
    plan = _plan(ladders, rungs, base_hash)
    got = measure(plan)
    hit = abs(got - goal) <= TOLERANCE * goal
    if not hit:
        _explain(target, ladders, measure, goal, got, dense)
    return plan.with_meta(
        asked=str(target),
        target={"macs": target.macs, "params": target.params, "ratio": target.ratio},
        scope=scope,
        **({"per_cost": per_cost} if scope == "global" else {}),
        hit=hit,
        goal=goal,
        got=got,
        macs={"dense": cost.macs(), "plan": cost.macs(plan)},
        params={"dense": cost.params(), "plan": cost.params(plan)},
    )


def _check(
    groups: Sequence[PrunableGroup],
    scores: Scores | None,
    scope: str,
    round_to: int,
    min_units: int,
    limits: Sequence[Limit],
) -> None:
    if scope not in ("global", "local"):
        raise PruningError(f"scope {scope!r} is unknown; valid: global, local")
    for name, value in (("round_to", round_to), ("min_units", min_units)):
        if value < 1:
            raise PruningError(f"{name} = {value}: must be at least 1")
    if twice := [name for name, count in Counter(group.name for group in groups).items() if count > 1]:
        raise PruningError(f"the group {twice[0]!r} is given twice")
    check_limits(groups, limits)
    if scores is None:
        if scope == "global":
            raise PruningError("scope 'global' compares scores across groups, but no scores were given")
        return
    scores.check(groups)
    missing = [group.name for group in groups if group.name not in scores.values]
    if missing:
        raise PruningError(f"no scores for the group {missing[0]!r} ({len(missing)} groups without scores)")


def _ladder(group: PrunableGroup, scores: Scores | None, unit_cost: float, allowed: list[int]) -> _Ladder:
    if scores is None:
        order = list(range(group.num_units - 1, -1, -1))
        return _Ladder(group, allowed, order, [0.0] * group.num_units, unit_cost)
    values, order = torch.sort(scores.values[group.name].double(), stable=True)
    return _Ladder(group, allowed, order.tolist(), values.tolist(), unit_cost)


def _have_a_zero(ladders: Sequence[_Ladder], scores: Scores | None) -> bool:
    """Tell whether scores may be divided by costs; if not, say so."""
    if not ladders:
        return True
    lowest = min(ladders, key=lambda ladder: ladder.scores[0])  # each ladder's scores rise
    if lowest.scores[0] >= -ROUNDING * max(abs(ladder.scores[-1]) for ladder in ladders):
        return True
    logger.warning(
        "prune.per_cost: scores of the criterion %r go below zero (%g in group %r), so that a score per cost means "
        "nothing; units are compared by their scores alone, as with prune.per_cost=false",
        "unknown" if scores is None else scores.meta.get("criterion", "unknown"),
        lowest.scores[0],
        lowest.group.name,
    )
    return False


def _goal(
    target: Target, groups: Sequence[PrunableGroup], cost: CostModel, measure: Callable[..., int]
) -> float:
    if target.ratio is None:
        kept = target.macs if target.macs is not None else target.params
        assert kept is not None
        return kept * measure()
    return cost.params() - target.ratio * _prunable_params(groups, cost)


def _prunable_params(groups: Sequence[PrunableGroup], cost: CostModel) -> float:
    """Parameters that belong to units; those inside a block that is a group itself count once."""
    units = cost.unit_costs("params")
    removable = [group.module for group in groups if group.kind == "blocks"]

    def nested(group: PrunableGroup) -> bool:
        own = group.module if group.kind == "blocks" else None
        return any(b != own and (group.module == b or group.module.startswith(b + ".")) for b in removable)

    return sum(units[group.name] * group.num_units for group in groups if not nested(group))


Step = int  # index of the ladder that goes down one rung


def _global(ladders: Sequence[_Ladder], per_cost: bool) -> Iterator[Step]:
    """Yield the cheapest next rung anywhere; within a group the order is fixed, so its price never falls."""
    heap: list[tuple[float, int, int]] = []

    def push(index: int, rung: int, least: float) -> None:
        ladder = ladders[index]
        if rung + 1 < len(ladder.sizes):
            freed = ladder.rung_cost(rung) if per_cost else ladder.sizes[rung] - ladder.sizes[rung + 1]
            price = max(least, ladder.rung_score(rung) / max(freed, 1e-12))
            heapq.heappush(heap, (price, index, rung))

    for index in range(len(ladders)):
        push(index, 0, -float("inf"))
    while heap:
        price, index, rung = heapq.heappop(heap)
        yield index
        push(index, rung + 1, price)


def _local(ladders: Sequence[_Ladder]) -> Iterator[Step]:
    """Yield steps so that all groups have lost about the same fraction of their units at any time.

    Blocks count as units of one group: they go in the order of their scores, spread evenly over the walk.
    """
    steps: list[tuple[float, int]] = []
    blocks = [
        i for i, ladder in enumerate(ladders) if ladder.group.kind == "blocks" and len(ladder.sizes) > 1
    ]
    blocks.sort(key=lambda i: (ladders[i].scores[0], i))
    for position, index in enumerate(blocks):
        steps.append(((position + 1) / len(blocks), index))
    for index, ladder in enumerate(ladders):
        if ladder.group.kind != "blocks":
            total = ladder.group.num_units
            steps += [((total - kept) / total, index) for kept in ladder.sizes[1:]]
    for _, index in sorted(steps):
        yield index


def _nearest(
    ladders: Sequence[_Ladder], walk: Iterator[Step], measure: Callable[..., int], goal: float
) -> list[int]:
    """Walk down until the goal is passed, then settle on the rungs that come nearest to it."""
    rungs = [0] * len(ladders)
    steps = list(walk)
    low, high = 0, len(steps)  # the number of steps taken; cost falls with it
    while low < high:
        middle = (low + high) // 2
        if measure(_plan(ladders, _taken(steps[:middle], len(ladders)), "")) <= goal:
            high = middle
        else:
            low = middle + 1
    below = _taken(steps[:low], len(ladders))
    if low == 0:
        return below
    above = _taken(steps[: low - 1], len(ladders))
    candidates = [below, above]
    # One rung may be coarse (a block, a head): a later, finer rung on top of `above` can come nearer.
    reached = measure(_plan(ladders, above, ""))
    rungs = list(above)
    for index in steps[low - 1 :]:
        down = rungs[index] + 1
        if down >= len(ladders[index].sizes):
            continue
        trial = [*rungs[:index], down, *rungs[index + 1 :]]
        if reached - ladders[index].rung_cost(rungs[index]) < goal * (1 - TOLERANCE / 4):
            continue
        cost_there = measure(_plan(ladders, trial, ""))
        if abs(cost_there - goal) < abs(reached - goal):
            rungs, reached = trial, cost_there
        if abs(reached - goal) <= goal * TOLERANCE / 4:
            break
    candidates.append(rungs)
    return min(candidates, key=lambda r: abs(measure(_plan(ladders, r, "")) - goal))


def _taken(steps: Sequence[Step], count: int) -> list[int]:
    rungs = [0] * count
    for index in steps:
        rungs[index] += 1
    return rungs


def _plan(ladders: Sequence[_Ladder], rungs: Sequence[int], base_hash: str) -> PruningPlan:
    removed = tuple(
        sorted(
            lad.group.module
            for lad, r in zip(ladders, rungs, strict=True)
            if lad.group.kind == "blocks" and r
        )
    )
    kept = {}
    for ladder, rung in zip(ladders, rungs, strict=True):
        if ladder.group.kind != "blocks" and rung:
            gone = ladder.group.num_units - ladder.sizes[rung]
            kept[ladder.group.name] = tuple(sorted(ladder.order[gone:]))
    plan = PruningPlan(kept=kept, removed_blocks=removed, base_hash=base_hash)
    if not removed:
        return plan
    inside = {
        lad.group.name for lad in ladders if lad.group.kind != "blocks" and plan.removes(lad.group.module)
    }
    return PruningPlan({n: u for n, u in kept.items() if n not in inside}, removed, base_hash)


def _explain(
    target: Target,
    ladders: Sequence[_Ladder],
    measure: Callable[..., int],
    goal: float,
    got: int,
    dense: int,
) -> None:
    """Say aloud that the target was not hit; refuse when it lies below what the limits allow."""
    least = measure(_plan(ladders, [len(ladder.sizes) - 1 for ladder in ladders], ""))
    unit = "MACs" if target.measure == "macs" else "parameters"
    if goal < least:
        raise PruningError(
            f"target {target}: needs {goal:,.0f} {unit}, but with these kinds, round_to, min_units and limits the "
            f"least reachable is {least:,} ({least / dense:.4f} of the dense {dense:,}); ask for at least that, "
            "or allow more kinds or blocks"
        )
    logger.warning(
        "target %s cannot be hit within %.0f %%: asked %s %s, nearest feasible %s (%.4f of dense)",
        target,
        100 * TOLERANCE,
        f"{goal:,.0f}",
        unit,
        f"{got:,}",
        got / dense,
    )
