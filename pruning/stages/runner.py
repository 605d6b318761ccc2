"""The loop over the stages of a recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.recipe import Recipe, load_recipe
from pruning.stages.calibration import calibrate
from pruning.stages.cutting import prune
from pruning.stages.evaluation import evaluate
from pruning.stages.exporting import export
from pruning.stages.folder import STAGES
from pruning.stages.placement import MODEL
from pruning.stages.planning import plan
from pruning.stages.preflight import preflight
from pruning.stages.progress import without_library_bars
from pruning.stages.recovering import recover
from pruning.stages.reporting import report
from pruning.stages.rounds import LAST, rounds_of, share_left, started
from pruning.stages.run import Run
from pruning.stages.scoring import score
from pruning.stages.stage import Stage
from pruning.stages.summary import write_summary

logger = logging.getLogger(__name__)

_ALL = (calibrate, score, plan, prune, recover, evaluate, export, report)
BY_NAME: dict[str, Stage] = {stage.name: stage for stage in _ALL}
assert tuple(BY_NAME) == STAGES


def run_recipe(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    start: str | None = None,
    until: str | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Run a recipe, reusing the stages that are done with equal settings and inputs.

    Args:
        recipe: A recipe, a path of one, or the name of a bundled one.
        overrides: ``key.path=value`` entries on top of a recipe that is read from a file.
        start: Do this stage and those after it anew.
        until: The last stage to run.
        fresh: Reuse nothing: every result is made anew and takes the place of the one in the store.
        progress: Draw progress bars.

    Returns:
        The figures of ``summary.json``; empty on all but the first process of a distributed launch.

    Raises:
        PruningError: For anything that cannot work, as a rule before the first expensive stage.
    """
    run = Run(recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides), progress=progress)
    return run_stages(run, start=start, until=until, fresh=fresh)


def run_stages(
    run: Run,
    *,
    start: str | None = None,
    until: str | None = None,
    fresh: bool = False,
    say_earlier: bool = False,
) -> dict[str, Any]:
    """Run the stages of a run; see `run_recipe`.

    With `say_earlier`, only `until` was asked for: it is said which stages before it will be run, too.
    """
    if run.recipe.prune.earlier:
        run = _after_rounds(run, fresh=fresh)
    names = STAGES[: _position(until) + 1] if until else STAGES
    if start and start not in names:
        _position(start)
        raise PruningError(f"--from {start} comes after --until {until}; the order is {', '.join(STAGES)}")
    if not run.ranks.is_first:
        for name in names:
            BY_NAME[name](run)
        return {}
    with run.workspace.held(), without_library_bars(quiet=not run.bars.enabled):
        run.workspace.check_owner(fresh=fresh)
        run.anew |= set(names if fresh else STAGES[_position(start) :] if start else ())
        shown, missing = run.folder.done(), due(run, names)
        if say_earlier and not fresh and (earlier := [name for name in missing if name != until]):
            logger.info("%s needs %s first; stop with Ctrl-C", until, ", ".join(earlier))
        preflight(run, missing)
        if fresh:
            run.workspace.take_over()
        try:
            for name in names:
                BY_NAME[name](run)
        except BaseException:
            with suppress(OSError, PruningError):
                if run.folder.done():
                    write_summary(run.folder)  # of what there is
            raise
        finally:
            run.bars.close()
            done = run.folder.done()
            if gone := [name for name in shown if name not in done]:
                why = "made with other settings or of earlier results, kept in the store until `sinkprune clean`"
                logger.info("%s no longer shows %s: %s", run.folder.path, ", ".join(gone), why)
        return write_summary(run.folder)


def _after_rounds(run: Run, *, fresh: bool) -> Run:
    """Do the earlier rounds of a run, as far as they are not done; return the run that goes on from there."""
    if run.ranks.is_first:
        preflight(run, STAGES)
    recipes, left, start = rounds_of(run.recipe), 1.0, run.recipe.model.start
    for number, recipe in enumerate(recipes, start=1):
        own = Run(started(recipe, start, left) if start else recipe, progress=run.bars.enabled)
        if run.ranks.is_first:
            logger.info(
                "round %d of %d: %s, in %s", number, len(recipes) + 1, recipe.prune.target, own.folder.path
            )
        run_stages(own, until=LAST, fresh=fresh)
        left, start = left * share_left(own), str(own.folder.path / LAST / MODEL)
    assert start is not None
    if run.ranks.is_first:
        logger.info("round %d of %d: %s", len(recipes) + 1, len(recipes) + 1, run.recipe.prune.target)
    return Run(started(run.recipe, start, left), progress=run.bars.enabled)


def due(run: Run, names: Sequence[str], *, touch: bool = True) -> Sequence[str]:
    """Return the stages that are to run: those from the first of which there is no result; `touch` as `Store.find`."""
    for position, name in enumerate(names):
        found = BY_NAME[name].find(run, touch=touch)
        if found is None:
            return names[position:]
        run.use(name, found)
    return ()


def _position(name: str) -> int:
    if name not in STAGES:
        raise PruningError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")
    return STAGES.index(name)
