"""Stage ``score``: from statistics to one score per unit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pruning import importance
from pruning.calibration.tensors import write_tensors
from pruning.on_demand import TensorFiles
from pruning.stages.calibration import weighting
from pruning.stages.run import SCORES, SCORES_CONTENT, Run
from pruning.stages.stage import Stage
from pruning.store import SCRATCH
from pruning.types import Scores


@partial(
    Stage,
    "score",
    after=("calibrate",),
    reads=("score.criterion", "prune.kinds", "model.dtype", "seed"),
    extra=lambda run: {"score.weighting": weighting(run)},  # null resolved: writing it out changes nothing
    resumable=True,
)
def score(run: Run, folder: Path) -> dict[str, Any]:
    """Score every unit of every group with the recipe's criterion."""
    section = run.recipe.score
    scores = write_scores(run, folder, section.criterion, section.weighting)
    return {
        "criterion": section.criterion,
        "weighting": scores.meta["weighting"],
        "groups": len(scores.values),
        "units": sum(len(values) for values in scores.values.values()),
    }


def write_scores(run: Run, folder: Path, criterion: str, weighting: str | None = None) -> Scores:
    """Score the run's groups and write the scores; what a killed attempt left in the folder is not scored again."""
    scores = importance.score(
        run.weights,
        run.groups,
        run.stats,
        criterion=criterion,
        weighting=weighting,
        seed=run.recipe.seed,
        known=TensorFiles(folder / SCRATCH / "scores", "scores"),
        progress=lambda done, total: run.bars("groups", done, total),
        **run.placement.working,
    )
    write_tensors(folder / SCORES, SCORES_CONTENT, scores.values, scores.meta)
    return scores
