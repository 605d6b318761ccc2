"""The blocks of a plan chosen anew, by measuring them together, at the cost that the plan gives to blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pruning.allocation.budget import TOLERANCE
from pruning.allocation.cost import CostModel
from pruning.allocation.depth import Measure, search_depth
from pruning.allocation.solver import allocate
from pruning.errors import PruningError
from pruning.settings import Prune
from pruning.types import PrunableGroup, PruningPlan, Scores


def choose_blocks(
    groups: Sequence[PrunableGroup],
    scores: Scores | None,
    cost: CostModel,
    settings: Prune,
    plan: PruningPlan,
    measure: Measure,
    *,
    alone: Mapping[str, float] | None = None,
) -> tuple[PruningPlan, dict[str, Any]]:
    """Choose the blocks of a plan anew by `search_depth`, and allocate the units of the others anew around them.

    How much blocks free stays as it was: where channels go, too, the plan settled how both share the work.

    Args:
        groups: What may be removed.
        scores: As for `allocate`, which made the plan.
        cost: As for `allocate`.
        settings: As for `allocate`; `depth.budget` is the most sets that are measured.
        plan: Result of `allocate`.
        measure: Returns the change of the output without the blocks at some paths.
        alone: The change without each single block, where it is known.

    Returns:
        A plan that is as near to the target, or within `TOLERANCE` of it, and the trace of `search_depth`, with why the
        plan stays as it was under ``kept``, None if it does not.

    Raises:
        PruningError: As `search_depth`.
    """
    total = cost.macs if settings.target.measure == "macs" else cost.params
    goal = total(PruningPlan(removed_blocks=plan.removed_blocks))
    if all(group.kind == "blocks" for group in groups):  # then they alone have to come nearer to it
        goal += plan.meta["goal"] - plan.meta["got"]
    found = search_depth(groups, cost, settings, plan, measure, goal=goal, alone=alone)
    start, chosen = found.trace["start"], found.trace["chosen"]
    anew, kept = plan, None
    if start is None:
        kept = "nothing may be measured" if plan.removed_blocks else "it removes no block"
    elif chosen == start:
        kept = "no blocks were found that change the output less when they go together"
    else:
        try:
            anew = allocate(groups, scores, cost, settings, start=plan.before_cuts(), blocks=found.removed)
        except PruningError as error:  # the rest cannot make up for what the blocks free less
            kept = str(error)
        if not _as_near(anew, plan):
            kept = f"around other blocks the target cannot be hit as nearly ({anew.meta['got']:,})"
        if kept is not None:
            anew, chosen = plan, start
    trace = {**found.trace, "chosen": chosen, "kept": kept}
    said = {
        "measured": len(trace["measured"]),
        "start": start and start["change"],
        "chosen": chosen and chosen["change"],
    }
    return replace(anew, meta={**anew.meta, "depth": said}), trace


def _as_near(plan: PruningPlan, other: PruningPlan) -> bool:
    """Tell whether a plan is as near to the goal as another one, or within the tolerance of it."""
    goal = plan.meta["goal"]
    return abs(plan.meta["got"] - goal) <= max(abs(other.meta["got"] - goal), TOLERANCE * goal)
