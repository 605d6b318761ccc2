"""Runs a recipe in a run directory, one stage after the other.

Every stage is a function of a `Run`: ``calibrate(run)`` does the stage, or finds it done, and returns the folder of
its artefacts. Stages speak through files; the run loads what they wrote: ``run.scores``. Files are named by nouns and
stages by verbs, so that no function hides a module.
"""

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
