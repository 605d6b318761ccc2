"""Where each criterion would cut: every one that the gathered statistics allow, at the run's own target and scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pruning.calibration.observer import ALWAYS, STATISTICS
from pruning.calibration.seeing import Attention
from pruning.errors import PruningError
from pruning.importance import CRITERIA, needs_of, score
from pruning.importance.moments import Weights
from pruning.on_demand import first_of
from pruning.stages.planning import cuts_of, hushed, make_plan
from pruning.stages.run import Run
from pruning.types import CalibrationStats, PrunableGroup, PruningPlan, matrix_of, parameter_path

GREEDY = "input_moment"
"""Who reads this P x P statistic removes units one by one and solves for what stays, which takes P^3 steps."""

MAX_WIDTH = 1024
"""Widest consumer input P for which greedy criteria other than the run's own are computed: about a second per group."""

NOT_GATHERED = "the run did not gather its statistics"
UNSEEN = "the attention of some layers cannot be seen"
NO_WEIGHTS = "the run did not gather its token weights"
TOO_SLOW = f"greedy, so left out above {MAX_WIDTH:,} inputs of a layer"
ONLY = "for whole {} only"


def criteria_cuts(run: Run) -> dict[str, Any]:
    """Return, for the report, what share of each group every criterion would cut.

    Returns:
        JSON types: ``groups`` (module and kind, in model order), ``rows`` (name, ``own``, and one share per group;
        first that of the run's plan, under its criterion or the name of the candidate that was chosen) and ``left_out``
        (why, and which). Only a ``note`` where criteria cannot differ.
    """
    if run.recipe.prune.scope == "local" and not any(group.kind == "blocks" for group in run.groups):
        return {
            "note": "With prune.scope=local every criterion takes the same share of each group; they differ in which "
            "units go."
        }
    stats, candidate = with_squares(run.stats), run.plan.meta.get("candidate")
    own = run.recipe.score.criterion if candidate is None else None
    rows = [{"name": own or f"chosen: {candidate}", "own": True, "shares": shares_cut(run.plan, run.groups)}]
    weights = run.weights
    left_out: dict[str, list[str]] = {}
    for name in sorted(set(CRITERIA) - {own}):
        why = reason_against(name, run.groups, weights, stats)
        if why is None:
            try:
                with hushed():
                    scores = score(weights, run.groups, stats, criterion=name, seed=run.recipe.seed)
                    plan = make_plan(run, scores, run.plan.before_cuts())
                rows.append({"name": name, "own": False, "shares": shares_cut(plan, run.groups)})
                continue
            except PruningError as error:  # a comparison must not cost the run its report
                why = str(error)
        left_out.setdefault(why, []).append(name)
    return {
        "groups": [{"module": group.module, "kind": group.kind} for group in run.groups],
        "rows": rows,
        "left_out": [{"why": why, "names": names} for why, names in left_out.items()],
    }


def shares_cut(plan: PruningPlan, groups: Sequence[PrunableGroup]) -> list[float]:
    """Return what share of each group's units `plan` removes; all of those in a removed block."""
    return [(cut["total"] - cut["kept"]) / cut["total"] for cut in cuts_of(plan, groups)]


def with_squares(stats: CalibrationStats) -> CalibrationStats:
    """Return `stats` with ``input_sq``, the diagonal of ``input_unit_moment``, where only that was gathered."""
    squares = {
        place: {"input_sq": found["input_unit_moment"].diagonal(dim1=1, dim2=2).flatten()}
        for place, found in stats.values.items()
        if "input_unit_moment" in found and "input_sq" not in found
    }
    if not squares:
        return stats
    values = {
        place: first_of(squares[place], found) if place in squares else found
        for place, found in stats.values.items()
    }
    return CalibrationStats(values, {**stats.meta, "needs": [*stats.meta.get("needs", []), "input_sq"]})


def reason_against(
    name: str, groups: Sequence[PrunableGroup], weights: Weights, stats: CalibrationStats
) -> str | None:
    """Return why a criterion cannot, or shall not, be computed from `stats`; None if nothing speaks against it."""
    entry, needs = CRITERIA[name], needs_of(name, groups) - {ALWAYS}
    if entry.only and any(group.kind != entry.only for group in groups):
        return ONLY.format(entry.only)
    if needs - set(stats.meta.get("needs", [])):
        return NOT_GATHERED
    heads = [group for group in groups if group.kind == "attention_heads"]
    of_attention = [need for need in needs if isinstance(STATISTICS[need].sees, Attention)]
    if not all(stats.of(group).has(group.name, need) for group in heads for need in of_attention):
        return UNSEEN
    if entry.weighting not in ("off", *stats.meta.get("variants", [])):
        return NO_WEIGHTS
    greedy = [group for group in groups if GREEDY in needs_of(name, [group])]
    widths = [_width(one, weights) for group in greedy for one in group.consumers]
    return TOO_SLOW if max(widths, default=0) > MAX_WIDTH else None


def _width(group: PrunableGroup, weights: Weights) -> int:
    """Return P, the columns of the weight of the group's one consumer, convolutions unfolded."""
    part = group.read_by
    return (
        group.num_units
        * part.unit_size
        * matrix_of(weights[parameter_path(part.path)], part.path).shape[2:].numel()
    )
