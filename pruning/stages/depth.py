"""The part of the stage ``plan`` that chooses blocks by measuring sets of them, where the recipe asks for it."""

from __future__ import annotations

import logging
from typing import Any

from pruning.allocation import choose_blocks
from pruning.calibration import OutputChange
from pruning.importance import single_changes
from pruning.stages.calibration import SHOWN, timestep_weights
from pruning.stages.run import Run
from pruning.stages.showing import shown
from pruning.stages.stage import pick
from pruning.types import PruningPlan, Scores

logger = logging.getLogger(__name__)

DEPTH = "depth.json"


def depends_on(run: Run) -> dict[str, Any]:
    """Return the settings that a search depends on; none without one."""
    return pick(run.recipe, (*SHOWN, "prune.depth")) if run.recipe.prune.depth.budget else {}


def effort(run: Run) -> dict[str, int] | None:
    """Return how many sets a search measures at most, and the forwards of one sample that takes; None without one."""
    recipe, section = run.recipe, run.recipe.prune.depth
    if not section.budget:
        return None
    shown = _samples(run) * recipe.calibrate.timestep_buckets
    return {"sets": section.budget, "forwards": (section.budget + 1) * shown}


def search(run: Run, plan: PruningPlan, scores: Scores) -> tuple[PruningPlan, dict[str, Any]]:
    """Choose the blocks of a plan anew, with the dense model; return the plan, and what was measured.

    Returns:
        The plan and, in JSON types, the trace of `choose_blocks` with ``forwards`` and ``power``, the mean square of
        the dense model's output, by which changes can be divided.
    """
    recipe = run.recipe
    effect = OutputChange(
        run.dense,
        run.groups,
        shown(run, range(_samples(run))),
        weights=timestep_weights(run) or recipe.calibrate.timestep_weights,
    )
    done = 0

    def measure(removed: tuple[str, ...]) -> float:
        nonlocal done
        done += 1
        run.bars("sets of blocks", done, recipe.prune.depth.budget)
        return effect(removed)

    alone = single_changes(scores, run.groups)
    found, trace = choose_blocks(run.groups, scores, run.cost, recipe.prune, plan, measure, alone=alone)
    trace |= {"forwards": effect.forwards, "power": effect.power}
    logger.info("%s", _words(trace))
    return found, trace


def _words(trace: dict[str, Any]) -> str:
    """Say what a search came to."""
    if trace["start"] is None:
        return f"no sets of blocks were measured, and the plan stays as it was: {trace['kept']}"
    figures, alone = depth_figures(trace), trace["chosen"]["sum_alone"]
    added = "" if alone is None else f" (one by one they add up to {alone / trace['power']:.3g})"
    said = (
        f"{figures['sets_measured']} sets of blocks were measured; without those chosen the output changes by "
        f"{figures['change']:.3g} of its mean square{added}"
    )
    if trace["kept"] is not None:
        return f"{said}, and the plan stays as it was: {trace['kept']}"
    return f"{said}, without those that their scores would choose by {figures['change_by_sum']:.3g}"


def _samples(run: Run) -> int:
    """Return how many of calibration's images a set is shown."""
    return min(run.recipe.prune.depth.samples, run.recipe.calibrate.num_samples)


def depth_figures(trace: dict[str, Any]) -> dict[str, Any]:
    """Return what a search came to, changes as shares of the output's mean square; None where no block goes."""
    start, chosen, power = trace["start"], trace["chosen"], trace["power"]
    return {
        "sets_measured": len(trace["measured"]),
        "forwards": trace["forwards"],
        "change_by_sum": start and start["change"] / power,
        "change": chosen and chosen["change"] / power,
    }
