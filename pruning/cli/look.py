"""``show``, ``diff`` and ``ls``: look at runs, checkpoints and recipes without touching them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pruning.cli import tables
from pruning.cli.console import Console, Outcome, facts, table, text_of
from pruning.cli.recording import recording_in, show_recording
from pruning.errors import PruningError
from pruning.files import expanded, read_json, size
from pruning.hook import PRUNING_KEY
from pruning.models.sources import DENOISER_FOLDERS
from pruning.recipe import Recipe, bundled_recipes, find_recipe, load_recipe, to_yaml
from pruning.registry import names_of
from pruning.settings import knobs_of, type_words
from pruning.settings.candidates import CANDIDATES
from pruning.stages.folder import RunFolder
from pruning.stages.summary import measured, summary_of
from pruning.store import OWNER, STORE, Store, changes


def show(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Show a run, a checkpoint, a recording or a recipe."""
    path = expanded(arguments.target)
    if (path / OWNER).is_file():
        return _show_run(path)
    if (recording := recording_in(path)) is not None:
        return show_recording(recording)
    for folder in (path, *(path / name for name in DENOISER_FOLDERS)):
        if (folder / "config.json").is_file():
            return _show_checkpoint(folder)
    if path.is_dir():
        raise PruningError(
            f"{path}: neither a run directory (run.json), a checkpoint (config.json) nor a recording (recording.json)"
        )
    recipe = load_recipe(find_recipe(arguments.target), check=False)
    return Outcome(asdict(recipe), [table(("",), [(to_yaml(recipe).rstrip(),)])])


def _show_run(path: Path) -> Outcome:
    folder = RunFolder(path)
    owner = folder.owner() or {"name": None, "model": {}, "data": {}}
    about = {
        "run": owner["name"],
        "model": owner["model"].get("source"),
        "data": owner["data"].get("source"),
    }
    drawn = [facts(about), tables.stages(folder)]
    plan = folder.manifest("plan").get("result")
    if plan:
        short = {key: value for key, value in plan.items() if key not in ("targets", "solver", "candidates")}
        drawn += [facts(short, title="\nplan"), *tables.targets(plan), *tables.candidates(plan)]
    if metrics := measured(folder):
        drawn.append(tables.subjects(metrics))
    data = {
        **about,
        "summary": summary_of(path),
        "plan": plan,
        "stages": {name: folder.manifest(name)["finished"] for name in folder.done()},
    }
    report = folder.stage("report") / "report.html"
    return Outcome(data, drawn, str(report) if report.is_file() else None)


def _show_checkpoint(folder: Path) -> Outcome:
    config = read_json(folder / "config.json", "it is no config of a model") or {}
    entry = config.get(PRUNING_KEY)
    params, dtypes, written = _weights(folder)
    about: dict[str, Any] = {
        "class": config.get("_class_name"),
        "parameters": params,
        "dtype": ", ".join(dtypes),
        "file_bytes": written,
        "pruned": entry is not None,
    }
    if isinstance(entry, dict):
        plan = _mapping(entry.get("plan"))
        meta = _mapping(plan.get("meta"))
        costs = {key: _mapping(meta.get(key)) for key in ("macs", "params")}
        smaller = {
            "low_rank_layers": _mapping(entry.get("ranks")),
            "shared_modules": _mapping(entry.get("shared")),
        }
        about |= {
            "format_version": entry.get("format_version"),
            "modules_cut": len(_mapping(entry.get("modules"))),
            "removed_blocks": entry.get("removed_blocks") or plan.get("removed_blocks") or [],
            **{name: len(found) for name, found in smaller.items() if found},
            "asked": meta.get("asked"),
            **{
                f"{key}_ratio": v["plan"] / v["dense"]
                for key, v in costs.items()
                if {"plan", "dense"} <= set(v)
            },
        }
    return Outcome(about, [facts(about)], str(folder))


def _weights(folder: Path) -> tuple[int, list[str], int]:
    """Return parameters, types and bytes of the safetensors files, from their headers alone."""
    params, dtypes, written = 0, set[str](), 0
    for path in sorted(folder.glob("*.safetensors")):
        written += path.stat().st_size
        try:
            with safe_open(path, framework="np") as file:
                tensors = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118
                params += sum(math.prod(tensor.get_shape()) for tensor in tensors)
                dtypes |= {tensor.get_dtype() for tensor in tensors}
        except SafetensorError as error:
            raise PruningError(
                f"{path}: cannot be read as safetensors ({error}); get the file again"
            ) from error
    return params, sorted(dtypes), written


def _mapping(value: Any) -> dict[str, Any]:
    """Return a value of somebody's config if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def diff(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Show in which values two recipes differ, and for two runs also the figures."""
    sides = [arguments.left, arguments.right]
    left, right = (asdict(load_recipe(side, check=False)) for side in sides)
    settings = changes(left, right)
    rows = [(key, text_of(a), text_of(b)) for key, a, b in settings]
    drawn = [table(("setting", *sides), rows)] if rows else [table(("no setting differs",), [])]
    data: dict[str, Any] = {"settings": {key: [a, b] for key, a, b in settings}}
    summaries = [summary for side in sides if (summary := summary_of(Path(side)))]
    if len(summaries) == 2:
        keys = [key for key, value in summaries[0].items() if not isinstance(value, (dict, list))]
        figures = [(key, *(s.get(key) for s in summaries)) for key in keys]
        known = [(key, a, b) for key, a, b in figures if (a, b) != (None, None)]
        rows = [(key.replace("_", " "), text_of(a, key), text_of(b, key)) for key, a, b in known]
        drawn.append(table(("figure", *sides), rows))
        data["figures"] = {key: [a, b] for key, a, b in figures}
    return Outcome(data, drawn)


def list_all(arguments: argparse.Namespace, console: Console) -> Outcome:
    """List recipes, criteria and runs; or one of these or of candidates, kinds, metrics, results and settings."""
    folder = Path(arguments.folder) if arguments.folder else None
    listings: dict[str, Callable[[], Listing]] = {
        "recipes": _recipes,
        "candidates": _candidates,
        "criteria": lambda: _meanings(names_of("criterion")),
        "kinds": lambda: _meanings(names_of("group kind")),
        "metrics": _metrics,
        "results": lambda: _results(folder),
        "runs": lambda: _runs(folder or Path("runs")),
        "settings": _settings,
    }
    chosen = [arguments.what] if arguments.what else ["recipes", "criteria", "runs"]
    data, drawn = {}, []
    for what in chosen:
        columns, rows = listings[what]()
        data[what] = [dict(zip(columns, row, strict=True)) for row in rows]
        drawn.append(table(columns, rows or [("none", *("",) * (len(columns) - 1))], title=f"\n{what}"))
    return Outcome(data, drawn)


Listing = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _candidates() -> Listing:
    own = "the recipe's"
    rows = [
        (str(number), " + ".join(one.criteria) or own, one.allocation, one.depth_words)
        for number, one in enumerate(CANDIDATES, start=1)
    ]
    return ("number", "criterion", "allocation", "depth"), rows


def _recipes() -> Listing:
    rows = [(name, load_recipe(path, check=False).title) for name, path in bundled_recipes().items()]
    return ("name", "title"), rows


def _metrics() -> Listing:
    from eval.metrics import available_metrics

    return _meanings(available_metrics())


def _meanings(texts: Mapping[str, str]) -> Listing:
    return ("name", "meaning"), [(name, text.replace("`", "")) for name, text in texts.items()]


def _settings() -> Listing:
    rows = [
        (knob.key, text_of(knob.default), type_words(knob.type), knob.meaning.replace("`", ""))
        for knob in knobs_of(Recipe)
    ]
    return ("key", "default", "type", "meaning"), rows


def _results(folder: Path | None) -> Listing:
    rows = []
    for store in [Store.of(folder)] if folder else map(Store, sorted(Path().glob(f"*/{STORE}"))):
        uses = {run.name: RunFolder(run).uses().values() for run in store.users()}
        for result in store.results():
            users = [name for name, used in uses.items() if any(result.name in names for names in used)]
            finished = result.manifest["finished"].replace("T", " ")
            rows.append(
                (str(store.path / result.name), size(result.bytes), finished, ", ".join(users) or "–")
            )
    return ("result", "size", "finished", "used by"), rows


def _runs(folder: Path) -> Listing:
    rows = []
    for owner in sorted(folder.glob(f"*/{OWNER}")):
        done = RunFolder(owner.parent).done()
        try:
            figures = tables.figures(owner.parent)
        except PruningError:  # one broken file hides no other run
            figures = ("cannot be read", "", "", "")
        rows.append((str(owner.parent), done[-1] if done else "–", *figures))
    return ("run", "done up to", *tables.FIGURES), rows
