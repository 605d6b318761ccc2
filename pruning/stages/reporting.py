"""Stage ``report``: gather what the stages wrote into one data file, and draw the report from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from eval.report import FORMAT, RunData, render
from pruning.allocation.budget import TOLERANCE
from pruning.errors import shown
from pruning.files import read_json, write_json, write_text
from pruning.importance import head_diagnostics
from pruning.importance.diagnostics import HIGH_MASS, LOW_FLUCTUATION
from pruning.recipe import to_yaml
from pruning.settings import NO_DATA
from pruning.settings.protocols import PROTOCOLS, departures
from pruning.stages.caveats import caveats, unseen
from pruning.stages.choosing import CANDIDATES
from pruning.stages.criteria import criteria_cuts
from pruning.stages.depth import DEPTH
from pruning.stages.evaluation import SAMPLE, SAMPLES, SHOWN_SAMPLES
from pruning.stages.folder import STAGES
from pruning.stages.heads import image_grid, write_folding
from pruning.stages.layers import layer_costs
from pruning.stages.planning import cuts_of
from pruning.stages.recovering import LOSSES, VALIDATION
from pruning.stages.run import Run
from pruning.stages.sampling import prompts_of
from pruning.stages.smaller_forms import REPORT as SMALLER_FORMS
from pruning.stages.stage import Stage, versions, whole_recipe
from pruning.stages.summary import origin, planned
from pruning.stages.targets import TARGETS
from pruning.types import CalibrationStats

SITE = ("sink_mass", "key_mass", "sink_indicator", "relative_mass", "visible_keys")
"""What is drawn of an attention module: by timestep bucket T, and by head H or key M of it."""
HEAD_BOUNDS = {"high_mass": HIGH_MASS, "low_fluctuation": LOW_FLUCTUATION}
DATA, SINKS, HEADS, PAGE = "data.json", "sinks.safetensors", "heads.safetensors", "report.html"


@partial(
    Stage, "report", after=("calibrate", "plan", "prune", "recover", "evaluate", "export"), extra=whole_recipe
)
def report(run: Run, folder: Path) -> dict[str, Any]:
    """Write ``data.json`` and its tensors, and draw the report from them."""
    data: dict[str, Any] = {"format": FORMAT}
    sources: dict[str, list[str]] = {}
    for part in PARTS:
        run.seen.clear()
        found = part(run, folder)
        data |= found
        sources |= dict.fromkeys(found, sorted(run.seen))
    data |= {"sources": sources, "provenance": _provenance(run, sources)}
    write_json(folder / DATA, data)
    write_text(folder / PAGE, render([RunData(data, folder)]))
    return {"page": PAGE, "attention_sites": len(data["sink_sites"] or ())}


# Each part gathers some entries of the data. What it asks of the stages meanwhile is what they come from, so that an
# entry which comes from elsewhere is a part by itself.


def _about(run: Run, folder: Path) -> dict[str, Any]:
    recipe = run.recipe
    prompts = prompts_of(run, recipe.data.eval_split, SHOWN_SAMPLES)
    return {
        "name": recipe.name,
        "title": recipe.title or recipe.name,
        "created": datetime.now().isoformat(timespec="minutes"),
        "model": recipe.model.source,
        "data": _data_words(run),
        "held_out": recipe.data.eval_split != recipe.data.split,
        "recipe_yaml": to_yaml(recipe),
        "versions": versions(),
        "seeds": {"seed": recipe.seed},
        "protocol": _protocol_words(run),
        "captions": prompts or None,
        "sink_detection": {key: getattr(recipe.calibrate.sink_weights, key) for key in ("mode", "rho")},
    }


def _asked(run: Run, folder: Path) -> dict[str, Any]:
    recipe = run.recipe
    asked = {
        **{key: value * _of_dense(run, key) for key, value in recipe.prune.target.given.items()},
        "tolerance": TOLERANCE,
        "scope": recipe.prune.scope,
        "criterion": recipe.score.criterion,
        "weighting": run.result("score").figures["weighting"],
        "compensation": recipe.prune.compensation,
        "recovery": f"{recipe.recover.steps} steps" if recipe.recover.enabled else "none",
    }
    return {"asked": asked}


def _got(run: Run, folder: Path) -> dict[str, Any]:
    figures = run.result("plan").figures
    left = {key: planned(figures, key) for key in ("macs_ratio", "params_ratio")}
    chosen = {"candidate": figures["candidates"]["chosen"]} if "candidates" in figures else {}
    return {"got": {**left, "hit": figures["hit"], **chosen}}


def _of_dense(run: Run, key: str) -> float:
    """Return by what a share of the model that is cut is to be multiplied, to be one of the dense model."""
    return run.share_of_dense(key) if key in COUNTED else 1.0


def _measured(run: Run, folder: Path) -> dict[str, Any]:
    return {"subjects": list(run.metrics), "metrics": run.metrics}


def _circumstances(run: Run, folder: Path) -> dict[str, Any]:
    manifests = {name: run.result(name).manifest for name in STAGES[:-1]}
    return {
        "device": manifests["evaluate"]["device"],
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
    }


def _pictures(run: Run, folder: Path) -> dict[str, Any]:
    (folder / SAMPLES).write_bytes(run.file("evaluate", SAMPLES).read_bytes())
    return {"samples": SAMPLES, "sample": read_json(run.file("evaluate", SAMPLE))}


def _validation(run: Run, folder: Path) -> dict[str, Any]:
    found = run.file("recover", VALIDATION)
    if found.is_file():
        (folder / VALIDATION).write_bytes(found.read_bytes())
    return {"validation": VALIDATION if found.is_file() else None}


def _sinks(run: Run, folder: Path) -> dict[str, Any]:
    sites = _write_sinks(run, folder / SINKS)
    return {"sinks": SINKS if sites else None, "sink_sites": sites or None}


def _diagnosed(run: Run, folder: Path) -> dict[str, Any]:
    heads = _heads(run)
    return {
        "diagnostics": {"heads": heads, "bounds": HEAD_BOUNDS},
        "folding": write_folding(run, heads, folder / HEADS),
    }


COUNTED = ("macs", "params")

Part = Callable[[Run, Path], dict[str, Any]]
PARTS: tuple[Part, ...] = (
    _about,
    _asked,
    _got,
    _measured,
    _circumstances,
    lambda run, folder: {"cuts": cuts_of(run.cut_plan, run.groups)},
    lambda run, folder: {"targets": read_json(run.file("plan", TARGETS))},
    lambda run, folder: {"smaller_forms": read_json(run.file("plan", SMALLER_FORMS))},
    lambda run, folder: {"recovery": read_json(run.file("recover", LOSSES))},
    lambda run, folder: {"warnings": [*caveats(run), *unseen(run.stats)]},
    lambda run, folder: {"criteria": criteria_cuts(run)},
    lambda run, folder: {"depth": read_json(run.file("plan", DEPTH))},
    lambda run, folder: {"candidates": read_json(run.file("plan", CANDIDATES))},
    lambda run, folder: {"layers": layer_costs(run)},
    _pictures,
    _validation,
    _sinks,
    _diagnosed,
)


def _provenance(run: Run, sources: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return of each stage how its result came about, the settings that it depends on, and hashes.

    Of all its files there is one hash, and one each of those that the data name as their sources.
    """
    results = {name: run.result(name) for name in STAGES[:-1]}
    named = {file for files in sources.values() for file in files}
    return {
        name: {
            **origin(result.manifest),
            "settings": result.manifest["config"],
            "sha256": result.output_hash,
            "files": {
                file: entry["sha256"]
                for file, entry in result.manifest["artefacts"].items()
                if f"{name}/{file}" in named
            },
        }
        for name, result in results.items()
    }


def _protocol_words(run: Run) -> str | None:
    """Return the protocol of evaluation that the recipe names, what it follows, and what the recipe does otherwise."""
    section = run.recipe.evaluate
    if section.protocol is None:
        return None
    apart = departures(section.protocol, section)
    words = "; ".join(f"{key} is {shown(given)}, not {shown(said)}" for key, (said, given) in apart.items())
    return f"{section.protocol} ({PROTOCOLS[section.protocol].follows})" + (f"; but {words}" if words else "")


def _data_words(run: Run) -> str:
    data = run.recipe.data
    if data.source == NO_DATA:
        return "none"
    return f"{data.source} ({data.split}; evaluated on {data.eval_split})"


def _heads(run: Run) -> list[dict[str, Any]]:
    """Return the diagnostics of every attention head, and whether it stays."""
    plan, groups = run.cut_plan, {group.name: group for group in run.groups}
    rows = head_diagnostics(run.weights, run.groups, run.stats)
    for row in rows:
        row["kept"] = not plan.removes(row["module"]) and row["head"] in plan.kept_units(groups[row["group"]])
    return rows


def _write_sinks(run: Run, path: Path) -> list[dict[str, Any]]:
    """Write the sink maps, means over samples, and return what sites they are of."""
    tensors: dict[str, Tensor] = {}
    sites = []
    for module in dict.fromkeys(group.module for group in run.groups):
        found = _site(run.stats, module)
        if not found:
            continue
        visible = float(found.pop("visible_keys").mean())
        tensors |= {f"{module}/{name}": value.contiguous() for name, value in found.items()}
        heads, keys = found["sink_mass"].shape[1], found["key_mass"].shape[1]
        of_text = getattr(run.meta.get_submodule(module), "is_cross_attention", False)
        grid = None if of_text else image_grid(run, keys)
        sites.append({"module": module, "heads": heads, "keys": keys, "visible": visible, "grid": grid})
    if tensors:
        save_file(tensors, str(path))
    return sites


def _site(stats: CalibrationStats, module: str) -> dict[str, Tensor]:
    """Return what `SITE` names of a module as means over samples, `key_mass` over heads as well, or nothing."""
    if not all(stats.has(module, name) for name in (*SITE, "samples")):
        return {}
    found = {name: stats.get(module, name) for name in SITE}
    found["key_mass"] = found["key_mass"].mean(1)
    found["visible_keys"] = found["visible_keys"][:, None]
    samples = stats.get(module, "samples").clamp(min=1)[:, None]
    return {name: (value / samples).to(torch.float32) for name, value in found.items()}
