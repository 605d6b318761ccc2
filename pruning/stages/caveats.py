"""What a reader must know before trusting the figures of a recipe, said before the work and in the report."""

from __future__ import annotations

from pathlib import Path

from pruning.models.sources import bundled_root
from pruning.recipe.schema import DIGITS
from pruning.stages.evaluation import features_of
from pruning.stages.run import Run
from pruning.types import PRUNING_KEY


def caveats(run: Run) -> list[str]:
    """Return the caveats of a run as sentences."""
    return [
        text
        for text in (
            _pruned_before(run),
            _not_held_out(run),
            _foreign_features(run),
            _wants_least_squares(run),
        )
        if text
    ]


def _pruned_before(run: Run) -> str | None:
    """Tell of a dense model that is a pruned one already."""
    if run.meta.config.get(PRUNING_KEY) is None:
        return None
    return (
        f"Pruned before: the model {run.recipe.model.source!r} is a pruned one already. What is called dense here is "
        "that model, and every ratio (MACs, parameters, speed, quality) is to it, not to the model it was cut from."
    )


def _not_held_out(run: Run) -> str | None:
    """Tell of an evaluation on the images that calibration and recovery see."""
    data = run.recipe.data
    if data.eval_split != data.split:
        return None
    return (
        f"Not held out: data.eval_split={data.eval_split} is data.split, so the models are judged by images that "
        "calibration and recovery see, and figures are better than on new ones. Name another split in data.eval_split."
    )


def _foreign_features(run: Run) -> str | None:
    """Tell of a bundled classifier, which knows the digits alone, on other data."""
    recipe = run.recipe
    path = Path(features_of(recipe)).expanduser().resolve()
    if recipe.data.source == DIGITS or not path.is_relative_to(bundled_root().resolve()):
        return None
    return (
        f"Features of other data: evaluate.features={recipe.features} was trained on the digits, but the images are "
        f"{recipe.data.source!r}. Distances on its features say little about them; leave evaluate.features out, "
        "which takes Inception."
    )


def _wants_least_squares(run: Run) -> str | None:
    """Tell of a criterion that supposes a refit which does not come."""
    criterion, compensation = run.recipe.score.criterion, run.recipe.prune.compensation
    if criterion not in ("probe_obs", "sink") or compensation == "least_squares":
        return None
    return (
        f"Criterion and compensation: {criterion} judges what is lost after least squares, but prune.compensation is "
        f"{compensation!r}. In our study score.criterion=probe was better there."
    )
