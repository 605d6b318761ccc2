"""What a recipe would do, on the meta device: no weights, nothing fetched, nothing written."""

from __future__ import annotations

import logging
from typing import Any

from pruning.errors import PruningError
from pruning.stages import smaller_forms, targets
from pruning.stages.candidates import names_of
from pruning.stages.caveats import caveats
from pruning.stages.depth import effort
from pruning.stages.outlook import kinds_of, sizes
from pruning.stages.planning import cuts_of, make_plan, plan_figures
from pruning.stages.preflight import check_class, look_ahead
from pruning.stages.rounds import rounds_of
from pruning.stages.run import Run
from pruning.stages.runner import due
from pruning.stages.sampling import check_call

logger = logging.getLogger(__name__)


def dry_run(run: Run) -> dict[str, Any]:
    """Return what may be cut, and what the target makes of it.

    The plan is the one that the run's scores give, if it has scores that fit the recipe; else the uniform one, which
    takes the same share of every group.

    Returns:
        JSON types: the dense model's ``params``, ``macs`` and ``bytes``; ``kinds``: groups, units and their shares, and
        how much of each goes; ``plan``: asked and got; ``basis``: ``scores`` or ``uniform``; ``groups``: every group;
        ``depth`` and ``candidates``: what the stage ``plan`` will measure; ``rounds``: the target and the steps of each
        earlier round.

    Raises:
        PruningError: As a run would: no groups, a target that cannot be met, a limit that matches nothing, an argument
            that the pipeline does not take.
    """
    run.offline = True
    if run.recipe.model.start is not None:
        check_class(run)
    check_call(run)
    scored = _has_scores(run)
    start = smaller_forms.assumed(run, smaller_forms.LIKELY)
    costs = targets.costs_for(run, measure=False)
    plan = make_plan(run, run.scores if scored else None, start, costs)
    cuts = cuts_of(plan, run.groups)
    if start is not None and start.ranks:
        logger.warning(
            "prune.modulation_error: %d modulation layers are taken to have an eighth of their full rank; the run "
            "chooses ranks from what they are fed",
            len(start.ranks),
        )
    if start is not None and start.shared:
        logger.warning("prune.share_embedders: repeated embedders are taken to be equal, weight for weight")
    for text in (*look_ahead(run), *caveats(run)):
        logger.warning("%s", text)
    figures = plan_figures(plan, run.groups)
    gone, dtype = run.cost.params() - figures["params"], run.recipe.export.dtype
    return {
        "model": run.recipe.model.source,
        "class": type(run.meta).__name__,
        "params": run.cost.params(),
        "macs": run.cost.macs(),
        "bytes": sizes(run.meta)[dtype],
        "kinds": kinds_of(run.cost, cuts),
        "plan": {**figures, "bytes": sizes(run.meta, gone=gone)[dtype]},
        "depth": effort(run),
        "candidates": names_of(run) if run.recipe.prune.candidates > 1 else [],
        "rounds": [
            {"target": str(earlier.prune.target), "steps": earlier.recover.steps}
            for earlier in rounds_of(run.recipe)
        ],
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
