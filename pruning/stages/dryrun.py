"""What a recipe would do, on the meta device: no weights, nothing fetched, nothing written."""

from __future__ import annotations

import logging
from typing import Any

import torch

from pruning.errors import PruningError
from pruning.stages.caveats import caveats
from pruning.stages.planning import by_kind, cuts_of, make_plan, plan_figures
from pruning.stages.preflight import look_ahead
from pruning.stages.run import Run
from pruning.stages.runner import due

logger = logging.getLogger(__name__)


def dry_run(run: Run) -> dict[str, Any]:
    """Return what may be cut, and what the target makes of it.

    The plan is the one that the run's scores give, if it has scores that fit the recipe; else the uniform one, which
    takes the same share of every group.

    Returns:
        JSON types: the dense model's ``params``, ``macs`` and ``bytes``; ``kinds``: groups, units and their shares, and
        how much of each goes; ``plan``: asked and got; ``basis``: ``scores`` or ``uniform``; ``groups``: every group.

    Raises:
        PruningError: As a run would: no groups, a target that cannot be met, a limit that matches nothing.
    """
    run.offline = True
    scored = _has_scores(run)
    plan = make_plan(run, run.scores if scored else None)
    cuts = cuts_of(plan, run.groups)
    for text in (*look_ahead(run), *caveats(run)):
        logger.warning("%s", text)
    size = getattr(torch, run.recipe.export.dtype).itemsize
    figures = plan_figures(plan, run.groups)
    return {
        "model": run.recipe.model.source,
        "class": type(run.meta).__name__,
        "params": run.cost.params(),
        "macs": run.cost.macs(),
        "bytes": size * run.cost.params(),
        "kinds": _kinds(run, cuts),
        "plan": {**figures, "bytes": size * figures["params"]},
        "basis": "scores" if scored else "uniform",
        "groups": cuts,
    }


def _has_scores(run: Run) -> bool:
    """Tell whether there are scores that this recipe would reuse."""
    try:
        run.workspace.check_owner()
        return not due(run, ("calibrate", "score"), touch=False)
    except PruningError:
        return False


def _kinds(run: Run, cuts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per kind: how much of the model it is, and how much of it goes."""
    params, macs = run.cost.unit_costs("params"), run.cost.unit_costs("macs")
    return [
        {
            "kind": kind,
            "groups": len(own),
            "units": sum(cut["total"] for cut in own),
            "removed": sum(cut["total"] - cut["kept"] for cut in own),
            "params_share": sum(params[cut["group"]] * cut["total"] for cut in own) / run.cost.params(),
            "macs_share": sum(macs[cut["group"]] * cut["total"] for cut in own) / run.cost.macs(),
        }
        for kind, own in by_kind(cuts).items()
    ]
