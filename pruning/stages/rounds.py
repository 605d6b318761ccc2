"""Prune, train, prune: earlier rounds of a run, each an ordinary run of its own that starts where the one before ended.

Round k of a run in ``runs/x`` lies in ``runs/x-round-k`` and goes as far as the training. Its target is a share of what
the round before left, its teacher the dense model. What is there is not done again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pruning.errors import PruningError
from pruning.recipe import Recipe
from pruning.settings import Target
from pruning.stages.run import Run

LAST = "recover"
"""Stage with which an earlier round ends."""


def rounds_of(recipe: Recipe) -> list[Recipe]:
    """Return the recipes of the earlier rounds, with targets of the dense model, as if all began with that."""
    section, folder = recipe.prune, Path(recipe.run_dir)
    if not section.earlier:
        return []
    (measure,) = section.target.given
    return [
        replace(
            recipe,
            name=f"{recipe.name}-round-{number}",
            run_dir=str(folder.with_name(f"{folder.name}-round-{number}")),
            prune=replace(section, target=Target(**{measure: goal}), earlier=[]),
            recover=replace(recipe.recover, enabled=True, steps=section.earlier_steps),
        )
        for number, goal in enumerate(section.earlier, start=1)
    ]


def started(recipe: Recipe, start: str, left: float) -> Recipe:
    """Return a recipe that goes on from a slim model, which has a share `left` of what the dense one has.

    Raises:
        PruningError: If the model is as slim already as the target asks.
    """
    ((measure, goal),) = recipe.prune.target.given.items()
    if goal >= left:
        raise PruningError(
            f"prune.target.{measure}: {goal:g} is asked, but the round before left {left:.4g} of it; make "
            "prune.earlier fall more slowly"
        )
    target = Target(**{measure: goal / left})
    prune = replace(recipe.prune, target=target, earlier=[])
    return replace(recipe, model=replace(recipe.model, start=start), prune=prune)


def share_left(run: Run) -> float:
    """Return what a finished round left of the model that it cut, as a share."""
    found = run.folder.manifest("plan")["result"]
    return float(found[f"{run.recipe.prune.target.measure}_ratio"])
