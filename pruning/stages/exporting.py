"""Stage ``export``: the slim model in the forms that the recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from pruning.export import export as write_export
from pruning.models import resolve_source
from pruning.recipe import to_yaml
from pruning.stages.run import Run
from pruning.stages.stage import stage, versions, whole_recipe

MEASURED = {
    "kernel": "kernel distance",
    "excess_error": "excess error against the dense model",
    "macs": "multiply-accumulates of one call",
    "params": "parameters",
    "file_bytes": "bytes of the weights",
    "speedup_call": "speed-up of one call",
    "speedup_sampling": "speed-up of sampling",
}
"""What the model card tells beside the Fréchet distance, and under which names."""


@stage(
    "export",
    after=("plan", "prune", "recover", "evaluate"),
    extra=whole_recipe,
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
    figures = {name: run.result(name).figures for name in ("plan", "recover")}
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
        "metrics": {name: _words(found) for name, found in run.metrics.items()},
        "measured": [
            f"{section.num_samples} samples, {section.num_steps} steps, guidance {section.guidance_scale:g}, "
            f"seed {recipe.seed}",
            run.device_name,
            "in brackets: 95 % intervals",
        ],
        "recipe": to_yaml(recipe),
        "versions": versions(),
    }


def _words(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurements of a model that a card has room for, under names that a reader knows."""
    names = {"frechet": found.get("frechet_name", "Fréchet distance"), **MEASURED}
    shown = {}
    for key, name in names.items():
        if key in found:
            interval = found.get(f"{key}_ci95")
            whole = found.get(f"{key}_coverage", 1.0) >= 0.95
            low_high = (
                f" ({interval[0]:.3g} to {interval[1]:.3g})"
                if whole and interval and interval[0] < interval[1]
                else ""
            )
            shown[name] = f"{found[key]:.3g}{low_high}" if isinstance(found[key], float) else found[key]
    return shown
