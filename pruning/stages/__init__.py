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
    from pruning.stages.calibration import calibrate as calibrate
    from pruning.stages.cutting import prune as prune
    from pruning.stages.dryrun import dry_run as dry_run
    from pruning.stages.evaluation import evaluate as evaluate
    from pruning.stages.exporting import export as export
    from pruning.stages.planning import plan as plan
    from pruning.stages.recovering import recover as recover
    from pruning.stages.reporting import report as report
    from pruning.stages.run import Run as Run
    from pruning.stages.runner import run_recipe as run_recipe
    from pruning.stages.runner import run_stages as run_stages
    from pruning.stages.scoring import score as score
    from pruning.stages.stage import Stage as Stage

__getattr__, __dir__ = lazy_exports(__name__, __file__)
