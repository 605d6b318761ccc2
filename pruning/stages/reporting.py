"""Stage ``report``: gather what the stages wrote into one data file, and draw the report from it."""

from __future__ import annotations

from collections.abc import Mapping
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
from pruning.stages.planning import cuts_of
from pruning.stages.recovering import LOSSES, VALIDATION
from pruning.stages.run import Run
from pruning.stages.sampling import prompts_of
from pruning.stages.smaller_forms import REPORT as SMALLER_FORMS
from pruning.stages.stage import Stage, versions, whole_recipe
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
    sites = _write_sinks(run, folder / SINKS)
    (folder / SAMPLES).write_bytes((run.result("evaluate").folder / SAMPLES).read_bytes())
    validation = run.result("recover").folder / VALIDATION
    if validation.is_file():
        (folder / VALIDATION).write_bytes(validation.read_bytes())
    heads = _heads(run)
    data = {
        "format": FORMAT,
        **_data(run),
        **({"sinks": SINKS, "sink_sites": sites} if sites else {}),
        **({"validation": VALIDATION} if validation.is_file() else {}),
        "sink_detection": {key: getattr(run.recipe.calibrate.sink_weights, key) for key in ("mode", "rho")},
        "diagnostics": {"heads": heads, "bounds": HEAD_BOUNDS},
        "folding": write_folding(run, heads, folder / HEADS),
        "criteria": criteria_cuts(run),
        "depth": read_json(run.result("plan").folder / DEPTH),
        "candidates": read_json(run.result("plan").folder / CANDIDATES),
    }
    write_json(folder / DATA, data)
    write_text(folder / PAGE, render([RunData(data, folder)]))
    return {"page": PAGE, "attention_sites": len(sites)}


def _data(run: Run) -> dict[str, Any]:
    """Return everything but what only the pictures show."""
    recipe, plan, metrics = run.recipe, run.cut_plan, run.metrics
    manifests = {name: run.result(name).manifest for name in STAGES[:-1]}
    target = {key: value for key, value in vars(recipe.prune.target).items() if value is not None}
    prompts = prompts_of(run, recipe.data.eval_split, SHOWN_SAMPLES)
    return {
        "name": recipe.name,
        "title": recipe.title or recipe.name,
        "created": datetime.now().isoformat(timespec="minutes"),
        "model": recipe.model.source,
        "data": _data_words(run),
        "held_out": recipe.data.eval_split != recipe.data.split,
        "asked": {
            **target,
            "tolerance": TOLERANCE,
            "scope": recipe.prune.scope,
            "criterion": recipe.score.criterion,
            "weighting": manifests["score"]["result"]["weighting"],
            "compensation": recipe.prune.compensation,
            "recovery": f"{recipe.recover.steps} steps" if recipe.recover.enabled else "none",
        },
        "got": _got(manifests["plan"]["result"]),
        "recipe_yaml": to_yaml(recipe),
        "device": manifests["evaluate"]["device"],
        "versions": versions(),
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
        "seeds": {"seed": recipe.seed},
        "protocol": _protocol_words(run),
        "subjects": list(metrics),
        "metrics": metrics,
        "cuts": cuts_of(plan, run.groups),
        "targets": read_json(run.result("plan").folder / TARGETS),
        "smaller_forms": read_json(run.result("plan").folder / SMALLER_FORMS),
        "recovery": read_json(run.result("recover").folder / LOSSES),
        "samples": SAMPLES,
        "sample": read_json(run.result("evaluate").folder / SAMPLE),
        "warnings": [*caveats(run), *unseen(run.stats)],
        **({"captions": prompts} if prompts else {}),
    }


def _got(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the plan came to, and which of several candidates it is."""
    found = {key: plan[key] for key in ("macs_ratio", "params_ratio", "hit")}
    return found | ({"candidate": plan["candidates"]["chosen"]} if "candidates" in plan else {})


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
