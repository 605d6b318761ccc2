"""Stage ``prune``: choose anew if asked, compensate, cut, save."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from pruning import checkpoint
from pruning.files import write_json
from pruning.importance import needs_of, score
from pruning.models import denoise, example_call
from pruning.selection import block_by_block
from pruning.stages import smaller_forms
from pruning.stages.calibration import SHOWN, Wanted, gather, weighting
from pruning.stages.run import MODEL, PLAN, Run
from pruning.stages.stage import Stage, pick
from pruning.surgery import apply_plan, compensate, compensation_needs
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
    section, model = run.recipe.prune, run.load_dense()
    dense = sum(p.numel() for p in model.parameters())
    smaller_forms.take(run, model)
    if section.selection == "block_by_block":
        plan, report = _choose_anew(run, model)
    else:
        plan, options = run.plan, {"method": section.compensation, "ridge": section.ridge}
        report = compensate(model, run.all_groups, plan, run.stats, **options)
    write_json(folder / "compensation.json", report)
    plan.save(folder / PLAN)
    apply_plan(model, plan)
    checkpoint.save(model, folder / MODEL)
    slim = sum(p.numel() for p in model.parameters())
    return {
        "selection": section.selection,
        "compensation": section.compensation,
        "params": slim,
        "params_ratio": slim / dense,
        "removed_blocks": list(plan.removed_blocks),
    }


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
