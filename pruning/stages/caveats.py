"""What a reader must know before trusting the figures of a recipe, said before the work and in the report."""

from __future__ import annotations

from pruning.files import expanded
from pruning.models.sources import bundled_root, resolve_source
from pruning.settings import DIGITS
from pruning.stages.run import Run
from pruning.types import PRUNING_KEY, CalibrationStats


def caveats(run: Run) -> list[str]:
    """Return the caveats of a run as sentences."""
    recipe, data = run.recipe, run.recipe.data
    criterion, compensation = recipe.score.criterion, recipe.prune.compensation
    features = expanded(resolve_source(recipe.features)).resolve()
    told = (
        (
            recipe.model.start is None and run.meta.config.get(PRUNING_KEY) is not None,
            f"Pruned before: the model {recipe.model.source!r} is a pruned one already. What is called dense here is "
            "that model, and every ratio (MACs, parameters, speed, quality) is to it, not to the one it was cut from.",
        ),
        (
            recipe.model.start is not None,
            f"Cut before: what is cut here is {recipe.model.start!r}, slim already. The target and the units that stay "
            "are shares of that; MACs, parameters, speed and quality of the result are compared with the dense model "
            f"{recipe.model.source!r}.",
        ),
        (
            data.eval_split == data.split,
            f"Not held out: data.eval_split={data.eval_split} is data.split, so the models are judged by images that "
            "calibration and recovery see, and figures are better than on new ones. Name another split in "
            "data.eval_split.",
        ),
        (
            data.source != DIGITS and features.is_relative_to(bundled_root().resolve()),
            f"Features of other data: evaluate.features={recipe.features} was trained on the digits, but the images "
            f"are {data.source!r}. Distances on its features say little about them; leave evaluate.features out, "
            "which takes Inception.",
        ),
        (
            criterion in ("probe_obs", "sink") and compensation != "least_squares",
            f"Criterion and compensation: {criterion} judges what is lost after least squares, but prune.compensation "
            f"is {compensation!r}. In our study score.criterion=probe was better there.",
        ),
    )
    return [text for holds, text in told if holds]


def unseen(stats: CalibrationStats) -> list[str]:
    """Say at how many modules attention could not be seen, so that the report draws nothing of them."""
    found = list(stats.meta.get("unseen", {}).values())
    if not found:
        return []
    where = "a module" if len(found) == 1 else f"{len(found)} modules"
    return [f"Attention unseen: at {where} nothing is drawn of sinks and heads ({found[0]})."]
