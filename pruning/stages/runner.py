"""The loop over the stages of a recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pruning.errors import PruningError
from pruning.recipe import Recipe, load_recipe
from pruning.stages.calibration import calibrate, sinks
from pruning.stages.cutting import prune
from pruning.stages.evaluation import evaluate
from pruning.stages.exporting import export
from pruning.stages.folder import STAGES, listed
from pruning.stages.planning import plan
from pruning.stages.preflight import preflight
from pruning.stages.progress import without_library_bars
from pruning.stages.recovering import recover
from pruning.stages.reporting import report
from pruning.stages.run import Run
from pruning.stages.scoring import score
from pruning.stages.stage import Stage, keep_later
from pruning.stages.summary import write_summary

logger = logging.getLogger(__name__)

_ALL = (sinks, calibrate, score, plan, prune, recover, evaluate, export, report)
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
        start: Do this stage and those after it anew; what they wrote before moves to ``.old``.
        until: The last stage to run.
        fresh: Reuse nothing; everything that the run directory holds moves to ``.old``.
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

    Args:
        run: The recipe in its run directory.
        start: As for `run_recipe`.
        until: As for `run_recipe`.
        fresh: As for `run_recipe`.
        say_earlier: Only `until` was asked for: say which stages before it will be run, too.
    """
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
        due = _due(run, names, start, fresh)
        if say_earlier and not fresh and (earlier := [name for name in due if name != until]):
            logger.info("%s", _needs(run, names[-1], earlier))
        preflight(run, due)
        try:
            old = _clear_way(run, start, fresh)
            with run.workspace.undone_on_error(old):
                for name in names:
                    BY_NAME[name](run)
        except Exception:
            with suppress(OSError, PruningError):
                if run.folder.done():
                    write_summary(run.folder)  # of what there is
            raise
        finally:
            run.bars.close()
        if start and not fresh:
            keep_later(run.folder, old, names[_position(start) :])
        run.workspace.claim()
        return write_summary(run.folder)


def _clear_way(run: Run, start: str | None, fresh: bool) -> Path | None:
    """Move to ``.old`` what is to be done anew whether it is out of date or not; return where it is now."""
    if fresh:
        return run.workspace.clear()
    return run.folder.retire(STAGES[_position(start) :]) if start else None


def _due(run: Run, names: Sequence[str], start: str | None, fresh: bool) -> Sequence[str]:
    """Return the stages that are to run: those from the first that is out of date or asked for anew."""
    if fresh:
        return names
    reused = 0
    while reused < len(names) and names[reused] != start and BY_NAME[names[reused]].is_current(run):
        reused += 1
    return names[reused:]


def _needs(run: Run, last: str, earlier: Sequence[str]) -> str:
    """Say which stages before `last` are to run, and why."""
    done = any(run.folder.is_done(name) for name in earlier)
    why = "have not been run or are out of date" if done else "have not been run"
    if len(earlier) == 1:
        why = "is out of date" if done else "has not been run"
    return (
        f"{last} needs {listed(earlier)}, which {why}: running {'it' if len(earlier) == 1 else 'them'} first; "
        "stop with Ctrl-C"
    )


def _position(name: str) -> int:
    if name not in STAGES:
        raise PruningError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}")
    return STAGES.index(name)
