"""What each layer gave up under the plan, and what the scores predicted of it: which layers pay most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pruning.importance import CRITERIA
from pruning.stages.run import Run
from pruning.stages.targets import layer_table
from pruning.types import PrunableGroup, PruningPlan, lies_in

Total = Callable[[PruningPlan | None], float]
OF_THE_OUTPUT = "expert_probe"
"""By this criterion whole experts are scored where scores are in units of the model's output or loss."""


def layer_costs(run: Run) -> dict[str, Any]:
    """Return, for the report, what each group of the plan gave up, and at which predicted error.

    Returns:
        JSON types. ``rows`` has the groups that lose units, of a removed block the block alone: ``group``, ``module``,
        ``kind``, ``kept``, ``total``, ``freed`` (by cost, what a call saves if this group alone is cut) and ``score``
        (sum of the scores of the units that go). ``dense`` and ``plan`` are costs of the whole model. ``criterion``;
        ``comparable``: whether its scores are in one unit for all layers; ``errors``: whether they are errors at all.
        ``seconds`` are among the costs where the layers were timed for the target. Empty if nothing goes.
    """
    plan, costs = run.plan, _costs(run)
    dense = {name: total(None) for name, total in costs.items()}
    scores, rows = run.scores, []
    for group, alone in _cuts(plan, run.groups):
        gone = alone.removed_units(group) if group.name in alone.kept else range(group.num_units)
        rows.append(
            {
                "group": group.name,
                "module": group.module,
                "kind": group.kind,
                "kept": group.num_units - len(gone),
                "total": group.num_units,
                "freed": {name: dense[name] - total(alone) for name, total in costs.items()},
                "score": float(scores.values[group.name][list(gone)].sum()),
            }
        )
    if not rows:
        return {}
    entry = CRITERIA[scores.meta["criterion"]]
    return {
        "rows": rows,
        "dense": dense,
        "plan": {name: total(plan) for name, total in costs.items()},
        "criterion": entry.name,
        "comparable": OF_THE_OUTPUT in (entry.name, entry.instead.get("experts")),
        # A score below zero has no zero that means "costs nothing".
        "errors": all(row["score"] >= 0 for row in rows),
    }


def _costs(run: Run) -> dict[str, Total]:
    """Return what plans cost, by name; MACs only where a call is known, seconds where the target has timed layers."""
    costs: dict[str, Total] = {"macs": run.cost.macs} if run.cost.macs() else {}
    costs["params"] = run.cost.params
    if (table := layer_table(run)) is not None:
        costs["seconds"] = table.total
    return costs


def _cuts(plan: PruningPlan, groups: list[PrunableGroup]) -> list[tuple[PrunableGroup, PruningPlan]]:
    """Return the groups that lose something by themselves, each with a plan of this loss alone."""
    gone = plan.gone(groups)
    found = []
    for group in groups:
        outer = gone - {group.module}
        if lies_in(group.module, outer):
            continue
        if group.kind == "blocks":
            if group.module in gone:
                found.append((group, PruningPlan(removed_blocks=(group.module,))))
        elif plan.removed_units(group) and not lies_in(group.module, gone):
            found.append((group, PruningPlan(kept={group.name: plan.kept_units(group)})))
    return found
