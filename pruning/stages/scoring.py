"""Stage ``score``: from statistics to one score per unit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pruning import importance
from pruning.calibration.store import write_tensors
from pruning.stages.calibration import weighting
from pruning.stages.run import SCORES, SCORES_CONTENT, Run
from pruning.stages.stage import Stage

READS = ("score.criterion", "prune.kinds", "model.dtype", "seed")


def rows_read(run: Run) -> dict[str, Any]:
    """Return the weighting of the rows with null resolved, so that writing it out changes nothing."""
    return {"score.weighting": weighting(run)}


@partial(Stage, "score", after=("calibrate",), reads=READS, extra=rows_read)
def score(run: Run, folder: Path) -> dict[str, Any]:
    """Score every unit of every group with the recipe's criterion."""
    section = run.recipe.score
    scores = importance.score(
        run.dense,
        run.groups,
        run.stats,
        criterion=section.criterion,
        weighting=section.weighting,
        seed=run.recipe.seed,
    )
    write_tensors(folder / SCORES, SCORES_CONTENT, scores.values, scores.meta)
    return {
        "criterion": section.criterion,
        "weighting": scores.meta["weighting"],
        "groups": len(scores.values),
        "units": sum(len(values) for values in scores.values.values()),
    }
