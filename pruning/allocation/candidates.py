"""Plans for one target that a candidate makes: scores mixed or tempered, and blocks that free a set share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pruning.allocation.budget import covers
from pruning.allocation.cost import CostModel
from pruning.allocation.costs import Cost
from pruning.allocation.solver import allocate, prunable
from pruning.errors import PruningError
from pruning.settings import Prune, Target
from pruning.settings.candidates import ALLOCATIONS, HEADS, Candidate
from pruning.types import PrunableGroup, PruningPlan, Scores


def candidate_settings(settings: Prune, candidate: Candidate) -> Prune:
    """Return the section ``prune`` as a candidate changes it."""
    return replace(settings, **ALLOCATIONS[candidate.allocation].settings)


def candidate_plan(
    groups: Sequence[PrunableGroup],
    scores: Sequence[Scores],
    cost: CostModel,
    settings: Prune,
    candidate: Candidate,
    *,
    start: PruningPlan | None = None,
    measured: Mapping[str, Cost] | None = None,
) -> PruningPlan:
    """Return the plan of a candidate; deterministic.

    Args:
        groups: What may be removed.
        scores: Of each of the candidate's criteria.
        cost: As for `allocate`.
        settings: The recipe's section.
        candidate: Which.
        start: As for `allocate`.
        measured: As for `allocate`.

    Raises:
        PruningError: If the target cannot be met in this way, or scores that are to be mixed or tempered go below zero.
    """
    settings, how = candidate_settings(settings, candidate), ALLOCATIONS[candidate.allocation]
    mixed = scores[0] if len(scores) == 1 else mix(scores)
    if how.temper:
        mixed = tempered(mixed, groups, cost.unit_costs(settings.target.measure), how.temper)
    if how.heads != 1:
        heads = {group.name for group in groups if group.kind == HEADS}
        values = {name: value * how.heads if name in heads else value for name, value in mixed.values.items()}
        mixed = Scores(values, dict(mixed.meta))
    blocks = None
    if candidate.depth is not None:
        blocks = blocks_freeing(candidate.depth, groups, mixed, cost, settings)
    return allocate(groups, mixed, cost, settings, start=start, blocks=blocks, measured=measured)


def mix(scores: Sequence[Scores]) -> Scores:
    """Return the sum of scores, each divided by its sum over all units.

    Raises:
        PruningError: If scores go below zero, or are all zero.
    """
    values = {name: value * 0 for name, value in scores[0].values.items()}
    for one in scores:
        total = _total(one, "added to others")
        values = {name: value + one.values[name] / total for name, value in values.items()}
    criteria = " + ".join(str(one.meta.get("criterion")) for one in scores)
    return Scores(values, {**scores[0].meta, "criterion": criteria})


def tempered(
    scores: Scores, groups: Sequence[PrunableGroup], unit_costs: Mapping[str, float], by: float
) -> Scores:
    """Return scores with smaller differences between groups, ``score / price^by`` with the price of the group.

    The price is the sum of a group's scores by the sum of its costs. Scores say what the removal of a unit does to the
    dense model, not to one that has lost most of a layer already; a plan that follows them to the letter may take too
    much from few layers.

    Args:
        scores: At least 0.
        groups: Of the units.
        unit_costs: Of a unit of each group, by name.
        by: From 0, which changes nothing, to 1, after which a cost is worth the same in all groups.

    Raises:
        PruningError: If scores go below zero, or are all zero.
    """
    _total(scores, "tempered")
    values = dict(scores.values)
    for group in groups:
        price = float(values[group.name].sum()) / max(1.0, unit_costs[group.name] * group.num_units)
        if price > 0:
            values[group.name] = values[group.name] / price**by
    return Scores(values, dict(scores.meta))


def _total(scores: Scores, how: str) -> float:
    """Return the sum of scores that are to be changed `how`."""
    if any(float(value.min()) < 0 for value in scores.values.values()):
        raise PruningError(
            f"scores of {scores.meta.get('criterion')} go below zero, so that they cannot be {how}"
        )
    total = sum(float(value.sum()) for value in scores.values.values())
    if not total > 0:
        raise PruningError(
            f"scores of {scores.meta.get('criterion')} are all zero, so that they cannot be {how}"
        )
    return total


def blocks_freeing(
    share: float,
    groups: Sequence[PrunableGroup],
    scores: Scores,
    cost: CostModel,
    settings: Prune,
) -> tuple[str, ...]:
    """Return the paths of the blocks that free this share of what the target frees, the cheapest by scores.

    Args:
        share: From 0 to 1.
        groups: Blocks among others.
        scores: Of these.
        cost: As for `allocate`.
        settings: Its target is one of macs, params and ratio.

    Raises:
        PruningError: If all blocks that may go free less, or the target is another.
    """
    if not share:
        return ()
    target = settings.target
    if not target.is_counted_alone:
        raise PruningError(f"blocks that free a share take one target of macs, params or ratio, not {target}")
    blocks = [group for group in groups if group.kind == "blocks"]
    if not blocks:
        raise PruningError(f"no blocks may go that could free {share:g} of what the target frees")
    total = cost.macs() if target.measure == "macs" else cost.params()
    freed = target.ratio * prunable(groups, cost, "params") if target.ratio is not None else 0.0
    freed = freed or (1 - next(iter(target.given.values()))) * total
    asked = Target(**{target.measure: 1 - share * freed / total})
    own = Scores({group.name: scores.values[group.name] for group in blocks}, dict(scores.meta))
    limits = [limit for limit in settings.limits if any(covers(limit, group) for group in blocks)]
    section = replace(settings, kinds=["blocks"], target=asked, limits=limits, scope="global")
    return allocate(blocks, own, cost, section).removed_blocks
