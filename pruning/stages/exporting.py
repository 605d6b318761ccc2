"""Stage ``export``: the slim model in the forms that the recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from pruning.export import export as write_export
from pruning.models import resolve_source
from pruning.recipe import to_yaml
from pruning.stages.run import Run
from pruning.stages.stage import stage, versions


@stage(
    "export",
    after=("plan", "prune", "recover", "evaluate"),
    reads=("export", "recover.enabled", "title", "name"),
)
def export(run: Run, folder: Path) -> dict[str, Any]:
    """Write the model that the run ends with, and verify what was written by loading it."""
    section, card, base = run.recipe.export, _card(run), base_folder(run)
    model = run.load_pruned(run.final_stage, torch.float32)
    written: dict[str, Any] = {}
    for name in section.formats:
        result = write_export(
            model,
            folder / name,
            exporter=name,
            dtype=section.dtype,
            max_shard_size=section.max_shard_size,
            card=card,
            scheduler=run.scheduler,
            base_pipeline_folder=base,
            verify=True,
        )
        written[name] = {"bytes": result.bytes, **result.checks}
    return {"dtype": section.dtype, **written}


def base_folder(run: Run) -> Path | None:
    """Return the folder of the dense model: its own, or its copy in the hub's cache; None if there is neither."""
    section = run.recipe.model
    path = Path(resolve_source(section.source))
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(section.source, revision=section.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _card(run: Run) -> dict[str, Any]:
    """Return the facts of the model card."""
    recipe = run.recipe
    figures = {name: run.folder.manifest(name)["result"] for name in ("plan", "recover", "evaluate")}
    section = recipe.evaluate
    return {
        "title": recipe.title or recipe.name,
        "base_model": recipe.model.source,
        "data": recipe.data.source,
        "asked": {
            "target": figures["plan"]["asked"],
            "criterion": recipe.score.criterion,
            "compensation": recipe.prune.compensation,
        },
        "got": {key: figures["plan"][key] for key in ("macs_ratio", "params_ratio")},
        "recovery": figures["recover"] if recipe.recover.enabled else "none",
        "metrics": figures["evaluate"],
        "measured": [
            f"{section.num_samples} samples, {section.num_steps} steps, guidance {section.guidance_scale:g}, "
            f"seed {recipe.seed}",
            run.device_name,
        ],
        "recipe": to_yaml(recipe),
        "versions": versions(),
    }
