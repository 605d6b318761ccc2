"""Stage ``prune``: compensate, cut, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruning import checkpoint
from pruning.stages.folder import write_json
from pruning.stages.run import MODEL, Run
from pruning.stages.stage import stage
from pruning.surgery import apply_plan, compensate


@stage("prune", after=("calibrate", "plan"), reads=("prune.compensation", "prune.ridge", "model.dtype"))
def prune(run: Run, folder: Path) -> dict[str, Any]:
    """Let what stays make up for what goes, cut, and write the slim model."""
    section, model = run.recipe.prune, run.load_dense()
    dense = sum(p.numel() for p in model.parameters())
    report = compensate(
        model, run.all_groups, run.plan, run.stats, method=section.compensation, ridge=section.ridge
    )
    write_json(folder / "compensation.json", report)
    apply_plan(model, run.plan)
    checkpoint.save(model, folder / MODEL)
    slim = sum(p.numel() for p in model.parameters())
    return {
        "compensation": section.compensation,
        "params": slim,
        "params_ratio": slim / dense,
        "removed_blocks": list(run.plan.removed_blocks),
    }
