"""Which candidates a run has: those of the list that its recipe and its model allow, as many as are asked for."""

from __future__ import annotations

from typing import Any

from pruning.allocation.candidates import candidate_settings
from pruning.calibration import find
from pruning.errors import PruningError
from pruning.importance import check_kinds, needs_of
from pruning.settings import SAMPLING, Prune
from pruning.settings.candidates import ALLOCATIONS, CANDIDATES, HEADS, Candidate
from pruning.stages.run import Run


def candidates_of(run: Run) -> list[Candidate]:
    """Return the candidates of a run, the recipe's own first; those that would come to the same are there once."""
    found: dict[tuple[Any, ...], Candidate] = {}
    for candidate in CANDIDATES:
        if len(found) == run.recipe.prune.candidates:
            break
        if candidate.is_own or _applies(run, candidate):
            found.setdefault(_what_it_does(run, candidate), candidate)
    return list(found.values())


def criteria_of(run: Run, candidate: Candidate) -> tuple[str, ...]:
    """Return the criteria of a candidate, the run's own where it has none."""
    return candidate.criteria or (run.recipe.score.criterion,)


def further_criteria(run: Run) -> list[str]:
    """Return the criteria that candidates need beside the run's own."""
    names = {name for candidate in candidates_of(run) for name in candidate.criteria}
    return sorted(names - {run.recipe.score.criterion})


def targetless(run: Run, criterion: str) -> str | None:
    """Return the statistic of a criterion that compares with targets which the run's provider does not have."""
    if run.recipe.calibrate.provider != SAMPLING:
        return None
    observers = find(needs_of(criterion, run.groups))
    return next((name for name, observer in observers.items() if observer.sees.needs_targets), None)


def _what_it_does(run: Run, candidate: Candidate) -> tuple[Any, ...]:
    """Return what tells a candidate from others in this run."""
    section, how = candidate_settings(run.recipe.prune, candidate), ALLOCATIONS[candidate.allocation]
    both = {HEADS} < {group.kind for group in run.groups}  # else there is nothing to weigh heads against
    ranked = (section.scope, section.per_cost or section.scope == "local")
    return criteria_of(run, candidate), ranked, how.temper, how.heads if both else 1.0, candidate.depth


def _applies(run: Run, candidate: Candidate) -> bool:
    """Tell whether a candidate's criteria can be had, and whether there are blocks where it is about them."""
    section: Prune = run.recipe.prune
    if candidate.depth is not None and not any(group.kind == "blocks" for group in run.groups):
        return False
    if candidate.depth and not section.target.is_counted_alone:
        return False
    try:
        for name in criteria_of(run, candidate):
            check_kinds(name, run.groups)
    except PruningError:
        return False
    return not any(targetless(run, name) for name in criteria_of(run, candidate))


def names_of(run: Run) -> list[str]:
    """Return the names of a run's candidates."""
    return [candidate.named(run.recipe.score.criterion) for candidate in candidates_of(run)]
