"""Runs a recipe in a run directory, one stage after the other.

Every stage is a function of a `Run`: ``calibrate(run)`` does the stage, or finds it done, and returns the folder
of its artefacts. Stages speak through files; what they wrote is loaded by the run when it is asked for::

    from pruning.stages import Run, calibrate, score

    run = Run.open("quickstart", ["score.criterion=wanda"])
    for stage in (calibrate, score):
        stage(run)
    run.scores.values

The files of this folder are named by nouns and the stages by verbs, so that no function hides a module; they are
imported when they are asked for, because what they need takes seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruning.lazy import lazy_exports

if TYPE_CHECKING:
    from pruning.stages.calibration import calibrate
    from pruning.stages.cutting import prune
    from pruning.stages.dryrun import dry_run
    from pruning.stages.evaluation import evaluate
    from pruning.stages.exporting import export
    from pruning.stages.planning import plan
    from pruning.stages.recovering import recover
    from pruning.stages.reporting import report
    from pruning.stages.run import Run
    from pruning.stages.runner import run_recipe, run_stages
    from pruning.stages.scoring import score
    from pruning.stages.stage import Stage

__all__ = [
    "Run",
    "Stage",
    "calibrate",
    "dry_run",
    "evaluate",
    "export",
    "plan",
    "prune",
    "recover",
    "report",
    "run_recipe",
    "run_stages",
    "score",
]


__getattr__, __dir__ = lazy_exports(
    __name__,
    calibration="calibrate",
    cutting="prune",
    dryrun="dry_run",
    evaluation="evaluate",
    exporting="export",
    planning="plan",
    recovering="recover",
    reporting="report",
    run="Run",
    runner="run_recipe run_stages",
    scoring="score",
    stage="Stage",
)
