"""Stage ``export``: the slim model in the forms that the recipe asks for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import ModelMixin
from huggingface_hub import ModelCard, snapshot_download

from pruning.errors import shown
from pruning.export import ExportRequest, Facts
from pruning.export import export as write_export
from pruning.export.card import LICENCE, Measurement
from pruning.files import expanded
from pruning.models import resolve_source
from pruning.recipe import to_yaml
from pruning.sampling import value_of
from pruning.sampling.arguments import GUIDANCE, STEPS
from pruning.stages.evaluation import FIGURES
from pruning.stages.run import Run
from pruning.stages.sampling import arguments_of
from pruning.stages.stage import Stage, versions, whole_recipe
from pruning.stages.summary import interval
from pruning.store import folder_bytes

logger = logging.getLogger(__name__)

GOT = ("macs_ratio", "params_ratio", "removed", "low_rank_layers", "shared_modules")
"""Figures of the plan that a card shows, where there are such."""
NAMED = ("frechet", "kernel", "fd_dinov2", "cmmd")
"""Figures that are called after the network that they were measured with."""


@partial(Stage, "export", after=("plan", "prune", "recover", "evaluate"), extra=whole_recipe)
def export(run: Run, folder: Path) -> dict[str, Any]:
    """Write the model that the run ends with, and verify what was written by loading it."""
    figures = {name: run.result(name).figures for name in ("plan", "recover")}
    last = "recover" if run.recipe.recover.enabled else "prune"
    request = request_of(run, run.load_pruned(last, torch.float32), figures, run.metrics)
    written: dict[str, Any] = {}
    for name in request.settings.formats:
        checks = write_export(request, folder / name, exporter=name)
        written[name] = {"bytes": folder_bytes(folder / name), **checks}
    return {"dtype": request.settings.dtype, **written}


def request_of(
    run: Run,
    model: ModelMixin,
    figures: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> ExportRequest:
    """Return what is asked of the exporters, with figures of ``plan`` and ``recover``, metrics by subject."""
    recipe, section, base = run.recipe, run.recipe.evaluate, _base_folder(run)
    card = Facts(
        title=recipe.title or recipe.name,
        base_model=_public(recipe.model.source),
        licence=_licence(base),
        data=_public(recipe.data.source),
        asked={
            "target": figures["plan"]["asked"],
            "criterion": figures["plan"].get("candidates", {}).get("chosen", recipe.score.criterion),
            "compensation": recipe.prune.compensation,
        },
        got={key: figures["plan"][key] for key in GOT if key in figures["plan"]},
        recovery=figures["recover"],
        metrics={name: _measurements(found) for name, found in metrics.items()},
        measured=(
            ", ".join([f"{section.num_samples} samples", *_call_words(run), f"seed {recipe.seed}"]),
            run.device_name,
            "in brackets: 95 % intervals",
        ),
        recipe=to_yaml(recipe),
        versions=versions(),
    )
    return ExportRequest(model, run.scheduler, recipe.export, card, base)


def _public(source: str) -> str:
    """Return what others know a source by: of a file or folder that is here, its name alone, which is no hub id."""
    path = expanded(source)
    return path.name if path.exists() else source


def _licence(base: Path | None) -> dict[str, str]:
    """Return what the card of the dense model says of its licence, nothing if it has none that can be read."""
    if base is None or not (base / "README.md").is_file():
        return {}
    try:
        said = ModelCard.load(base / "README.md", ignore_metadata_errors=True).data.to_dict()
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
    ) as error:  # somebody else's card must not cost the run its export
        logger.warning("%s cannot be read, so that the licence is not known (%s)", base / "README.md", error)
        return {}
    return {key: said[key] for key in LICENCE if isinstance(said.get(key), str)}


def _call_words(run: Run) -> list[str]:
    """Return the arguments that samples were made with, in words; steps and guidance also where they are defaults."""
    arguments = arguments_of(run, run.recipe.evaluate)
    steps, guidance = (value_of(run.pipeline_class, arguments, name) for name in (STEPS, GUIDANCE))
    words = [] if steps is None else [f"{steps} steps"]
    words += [] if guidance is None else [f"guidance {guidance:g}"]
    return words + [
        f"{key} {shown(value)}" for key, value in arguments.items() if key not in (STEPS, GUIDANCE)
    ]


def _base_folder(run: Run) -> Path | None:
    """Return the folder of the dense model: its own, or its copy in the hub's cache; None if there is neither."""
    section = run.recipe.model
    path = Path(resolve_source(section.source))
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(section.source, revision=section.revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _measurements(found: Mapping[str, Any]) -> dict[str, Measurement]:
    """Return what was measured of a model as far as a card has room for it, under names that a reader knows."""
    names = FIGURES | {key: found[f"{key}_name"] for key in NAMED if f"{key}_name" in found}
    shown: dict[str, Measurement] = {}
    for key, name in names.items():
        value, bounds = found.get(key), interval(found, key)
        if value is not None:
            shown[name] = (value, bounds if bounds and bounds[0] < bounds[1] else None)
    return shown
