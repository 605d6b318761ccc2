"""Stage ``prune``: choose anew if asked, compensate, cut, save."""

from __future__ import annotations

from collections.abc import MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from torch import Tensor, nn

from pruning import checkpoint
from pruning.files import remove, write_json
from pruning.importance import needs_of, score
from pruning.models import denoise, example_call
from pruning.selection import block_by_block
from pruning.stages import smaller_forms
from pruning.stages.calibration import SHOWN, Wanted, gather, weighting
from pruning.stages.placement import MODEL
from pruning.stages.run import PLAN, Run
from pruning.stages.stage import Stage, pick
from pruning.store import SCRATCH
from pruning.surgery import apply_plan, compensate, compensation_needs, cut_on_disk
from pruning.surgery.changes import Changes
from pruning.types import PruningPlan

MEASURED_AGAIN = (*SHOWN, "calibrate.rows", "calibrate.sink_weights", "score.criterion", "prune.rounds")
"""Keys that ``block_by_block`` depends on besides."""


def _selection(run: Run) -> dict[str, Any]:
    if run.recipe.prune.selection == "one_shot":
        return {"selection": "one_shot"}
    again = {**pick(run.recipe, MEASURED_AGAIN), "score.weighting": weighting(run)}
    return {"selection": run.recipe.prune.selection, **again}


@partial(
    Stage,
    "prune",
    after=("calibrate", "plan"),
    reads=("prune.compensation", "prune.ridge", "model.dtype"),
    extra=_selection,
)
def prune(run: Run, folder: Path) -> dict[str, Any]:
    """Let what stays make up for what goes, cut, and write the slim model."""
    section = run.recipe.prune
    if run.placement.streams and section.selection == "one_shot":
        plan, (dense, slim) = run.plan, _from_disk_to_disk(run, folder)
    else:
        plan, (dense, slim) = _in_memory(run, folder)
    return {
        "selection": section.selection,
        "compensation": section.compensation,
        "params": slim,
        "params_ratio": slim / dense,
        "removed_blocks": list(plan.removed_blocks),
    }


def _in_memory(run: Run, folder: Path) -> tuple[PruningPlan, tuple[int, int]]:
    """Cut the whole model and write it; returns the plan that was cut by, and the parameters before and after."""
    section, model = run.recipe.prune, run.load_dense()
    dense = sum(p.numel() for p in model.parameters())
    smaller_forms.take(model, run.plan, run.result("plan").folder)
    if section.selection == "block_by_block":
        plan, report = _choose_anew(run, model)
    else:
        plan, report = run.plan, compensated(run, model, run.plan)
    write_json(folder / "compensation.json", report)
    plan.save(folder / PLAN)
    apply_plan(model, plan)
    checkpoint.save(model, folder / MODEL)
    return plan, (dense, sum(p.numel() for p in model.parameters()))


def compensated(
    run: Run, weights: nn.Module | MutableMapping[str, Tensor], plan: PruningPlan
) -> dict[str, dict[str, Any]]:
    """Let what stays of the dense weights make up for what a plan takes, as the recipe says; returns the report."""
    section = run.recipe.prune
    return compensate(
        weights,
        run.all_groups,
        plan,
        run.stats,
        method=section.compensation,
        ridge=section.ridge,
        model=run.meta,
        **run.placement.working,
    )


def _from_disk_to_disk(run: Run, folder: Path) -> tuple[int, int]:
    """Do what `_in_memory` does, holding no more than a group's weights; returns the parameters before and after."""
    plan, changes = run.plan, Changes(run.weights, folder / SCRATCH / "changed")
    for name, weight in smaller_forms.weights_of(plan, run.result("plan").folder).items():
        changes[name] = weight
    report = compensated(run, changes, plan)
    write_json(folder / "compensation.json", report)
    plan.save(folder / PLAN)
    remove(folder / MODEL)
    written = cut_on_disk(
        plan=plan,
        target=folder / MODEL,
        dtype=run.dtype if run.placement.widens else None,
        changed=changes.changed,
        progress=lambda done, total: run.bars("writing", done, total),
        **run.placement.stored,
    )
    return written.dense_params, written.params


def _choose_anew(run: Run, model: ModelMixin) -> tuple[PruningPlan, dict[str, dict[str, Any]]]:
    """Choose the units of `model` block by block, in the sizes of the run's plan; compensates in place."""
    section, criterion = run.recipe.prune, run.recipe.score.criterion
    rows = weighting(run)
    needs = needs_of(criterion, run.groups) | compensation_needs(section.compensation)
    asked = Wanted(tuple(sorted(needs)), () if rows == "off" else (rows,))
    return block_by_block(
        model,
        run.all_groups,
        run.plan,
        run=lambda: denoise(model, example_call(model)),
        measure=lambda groups: gather(run, model, groups, asked),
        judge=lambda groups, stats: score(
            model, groups, stats, criterion=criterion, weighting=rows, seed=run.recipe.seed
        ),
        compensation=section.compensation,
        ridge=section.ridge,
        rounds=section.rounds,
        progress=lambda block, done, total: run.bars("blocks", done, total),
    )
