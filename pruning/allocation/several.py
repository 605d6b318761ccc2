"""Plans under bounds on what users pay: time, memory, or several costs at once, all of which must hold.

Where scores of all groups can be compared and are to be paid for by what they free, which sizes groups take is a
knapsack (`pruning.allocation.knapsack`). It works with sums; what these miss is taken up by solving again with other
goals until the totals hold. In all other cases groups go down their ladders in the order of their prices, as for one
cost, until all bounds hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pruning.allocation.budget import TOLERANCE
from pruning.allocation.costs import Bound, Sum
from pruning.allocation.knapsack import Item, solve
from pruning.allocation.ladder import Ladder
from pruning.errors import PruningError
from pruning.types import PruningPlan, inside

logger = logging.getLogger(__name__)

AGAIN = 6
"""How often the knapsack is solved with goals that make up for what sums miss."""
BACK = 100
"""Steps that are looked at once more, the last ones first, once all bounds hold."""
ROUNDING = 1e-9

Rungs = list[int]
Planned = Callable[[Rungs], PruningPlan]
"""Makes a plan of how far down each ladder is taken."""


@dataclass(frozen=True)
class Found:
    """How far down each ladder is taken, and the solver's account of it (JSON types)."""

    rungs: Rungs
    solver: dict[str, float | str]


def largest_share(bounds: Sequence[Bound], plan: PruningPlan) -> float:
    """Return the largest share that any cost of a plan takes of its bound; at most 1 where all hold."""
    return max(bound.share(plan) for bound in bounds)


def by_knapsack(
    ladders: Sequence[Ladder],
    bounds: Sequence[Bound],
    planned: Planned,
    start: PruningPlan,
    known: Rungs | None = None,
) -> Found | None:
    """Choose sizes whose loss is least under all bounds; None if none are found. `known` are some that hold."""
    sums = [(bound, total) for bound in bounds for total in bound.cost.sums()]
    # Weights that are decided already are in the totals and not in the sums.
    decided = {id(bound): bound.cost.total() - bound.cost.total(start) for bound in bounds}
    items = [_item(ladder, ladders, [total for _, total in sums]) for ladder in ladders]
    ceiling = sum(float(item.loss[rung]) for item, rung in zip(items, known or [0] * len(items), strict=True))
    goals = {id(bound): bound.goal for bound in bounds}
    best: Found | None = None
    least = np.inf
    for _ in range(AGAIN):
        need = np.array([total.dense - decided[id(bound)] - goals[id(bound)] for bound, total in sums])
        solution = solve(items, need, ceiling or None)
        if solution is None:
            break
        plan = planned(solution.rungs)
        shares = {id(bound): bound.share(plan) for bound in bounds}
        worst = max(shares.values())
        if worst <= 1 + ROUNDING:
            gap = (solution.loss - solution.bound) / solution.loss if solution.loss > 0 else 0.0
            account = {
                "method": "knapsack",
                "loss": solution.loss,
                "bound": solution.bound,
                "gap": max(0.0, gap),
            }
            if solution.loss < least:
                least, best = solution.loss, Found(solution.rungs, account)
            if worst >= 1 - TOLERANCE / 4 or not any(solution.rungs):
                break
        for bound in bounds:  # by what the sums were wrong here
            linear = max(
                total.dense - decided[id(bound)] - _freed(items, solution.rungs, row)
                for row, (owner, total) in enumerate(sums)
                if owner is bound
            )
            goals[id(bound)] = bound.goal - (bound.cost.total(plan) - linear)
    return best


def in_order(
    ladders: Sequence[Ladder], steps: Sequence[int], bounds: Sequence[Bound], planned: Planned
) -> Found | None:
    """Take steps in their order until all bounds hold, then take back what need not go; None if they never hold.

    Args:
        ladders: The ways down.
        steps: Which ladder goes down one rung at each step.
        bounds: What must hold.
        planned: Makes a plan.
    """

    def after(count: int) -> Rungs:
        return np.bincount(np.asarray(steps[:count], dtype=np.int64), minlength=len(ladders)).tolist()

    def holds(rungs: Rungs) -> bool:
        return largest_share(bounds, planned(rungs)) <= 1 + ROUNDING

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(after(middle)) else (middle + 1, high)
    rungs = after(low)
    if not holds(rungs):
        return None
    for index in list(reversed(steps[:low]))[:BACK]:
        trial = [rung - (place == index) for place, rung in enumerate(rungs)]
        if trial[index] >= 0 and holds(trial):
            rungs = trial
    return Found(rungs, {"method": "in the order of prices"})


def _item(ladder: Ladder, ladders: Sequence[Ladder], sums: Sequence[Sum]) -> Item:
    group, sizes = ladder.group, ladder.sizes
    below = np.concatenate([[0.0], np.cumsum(np.maximum(ladder.scores, 0.0))])
    gone = group.num_units - np.asarray(sizes)
    within = tuple(
        index
        for index, other in enumerate(ladders)
        if other.is_block
        and other is not ladder
        and len(other.sizes) > 1
        and any(inside(group.module, path) for path in other.group.paths)
    )
    return Item(below[gone], np.stack([total.freed(group, sizes) for total in sums]), within)


def _freed(items: Sequence[Item], rungs: Rungs, row: int) -> float:
    gone = {index for index, (item, rung) in enumerate(zip(items, rungs, strict=True)) if rung}
    return sum(
        float(item.freed[row, rung])
        for item, rung in zip(items, rungs, strict=True)
        if not gone.intersection(item.within)
    )


def refuse(bounds: Sequence[Bound], least: PruningPlan) -> NoReturn:
    """Raise PruningError for the first bound that lies below what the smallest plan comes to, or for all together."""
    for bound in bounds:
        reached, dense = bound.cost.total(least), bound.cost.total()
        if reached > bound.goal:
            raise PruningError(
                f"target {bound.asked}: needs {bound.words(bound.goal)}, but with these kinds, round_to, min_units and "
                f"limits the least reachable is {bound.words(reached)} ({reached / dense:.4f} of the dense "
                f"{bound.words(dense)}); ask for at least that, or allow more kinds or blocks"
            )
    raise PruningError(
        f"targets {' and '.join(bound.asked for bound in bounds)}: no plan was found under which they hold; ask for "
        "less"
    )


def explain(bounds: Sequence[Bound], plan: PruningPlan) -> None:
    """Say that the bounds hold with room, since what could be given back is worth less than what would go instead."""
    said = ", ".join(
        f"{bound.words(bound.cost.total(plan))} of {bound.words(bound.goal)}" for bound in bounds
    )
    logger.warning(
        "targets hold with more than %.0f %% of room: the plan that loses least comes to %s",
        100 * TOLERANCE,
        said,
    )
