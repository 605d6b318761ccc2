"""``plan`` and ``prune`` of a model, without a recipe: what a target makes of it, and a plan carried out on disk."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning.cli import tables
from pruning.cli.console import Console, Outcome, facts
from pruning.cli.lean import lean
from pruning.errors import PruningError
from pruning.files import expanded, read_json, write_errors
from pruning.recipe import bundled_recipes
from pruning.settings import Prune, Target

logger = logging.getLogger(__name__)

TARGETS = ("macs", "params", "ratio")
FORMS = ("modulation_rank", "share_embedders")
PLAN_OPTIONS = (*TARGETS, "kinds", "round_to", *FORMS, "save")
"""Options of ``plan`` that are for a model."""

PRUNE_OPTIONS = ("plan", "out", "dtype", "max_shard_size")
"""Options of ``prune`` that are for a model."""

_HOLDS_MODEL = ("config.json", "model_index.json", "unet/config.json", "transformer/config.json")
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


def names_model(word: str) -> bool:
    """Tell whether a word means a model, and not a recipe.

    A recipe is a YAML file, a run directory or the name of a bundled one. A model is a JSON file, a folder with the
    config of a model or a pipeline, ``bundled:…``, or else ``owner/name``, where no folder ``owner`` is here.
    """
    path = expanded(word)
    if word.startswith("bundled:") or path.suffix.lower() == ".json":
        return True
    if path.is_dir():
        return not (path / "recipe.yaml").is_file() and any((path / name).is_file() for name in _HOLDS_MODEL)
    if path.exists() or path.suffix.lower() in (".yaml", ".yml") or word in bundled_recipes():
        return False
    return _HUB_ID.fullmatch(word) is not None and not path.parent.is_dir()


def plan_model(arguments: argparse.Namespace) -> Outcome:
    """Say what a model is, what of it may be cut, and with a target, what the uniform plan makes of it."""
    _for_a_model(arguments, PLAN_OPTIONS)
    settings = _settings(arguments)
    target = None if arguments.save is None else _writable(arguments.save)

    def look() -> tuple[dict[str, Any], Any]:
        from pruning.stages.outlook import outlook

        return outlook(
            arguments.recipe,
            settings,
            modulation_rank=arguments.modulation_rank,
            share_embedders=bool(arguments.share_embedders),
        )

    found, plan = lean(look)
    for text in found["notes"]:
        logger.warning("%s", text)
    if target is None:
        return Outcome(found, tables.outlook(found))
    with write_errors("the plan", target.parent, "Nothing has been changed"):
        target.parent.mkdir(parents=True, exist_ok=True)
        plan.save(target)
    return Outcome(found, tables.outlook(found), str(target))


def prune_model(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Write what a plan leaves of a model as a folder, reading and writing a little at a time."""
    _for_a_model(arguments, PRUNE_OPTIONS)
    if arguments.plan is None or arguments.out is None:
        raise PruningError(
            "prune of a model takes --plan and --out, as in "
            f"`sinkprune prune {arguments.recipe} --plan plan.json --out slim`; `sinkprune plan` with --save writes "
            "plans"
        )
    path = expanded(arguments.plan)
    if not path.is_file():
        raise PruningError(
            f"--plan: there is no file {arguments.plan!r}; `sinkprune plan` with --save writes one"
        )
    if Path(arguments.recipe).is_file():
        raise PruningError(
            f"{arguments.recipe!r} is a config alone, without weights; name the folder of the model"
        )
    import torch

    from pruning.stages.progress import Bars, without_library_bars
    from pruning.surgery import cut_on_disk
    from pruning.types import PruningPlan

    bars = Bars(console.progress)
    with without_library_bars(quiet=not console.progress), bars.lines("prune"):
        written = cut_on_disk(
            arguments.recipe,
            PruningPlan.load(path),
            arguments.out,
            dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
            max_shard_size=arguments.max_shard_size or "10GB",
            progress=lambda done, total: bars("MB written", done // 10**6, total // 10**6),
        )
    found = {
        "params": written.params,
        "params_ratio": written.params / written.dense_params,
        "bytes": written.bytes,
        "files": written.files,
    }
    return Outcome(found, [facts(found)], str(written.folder))


def _for_a_model(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """What is for a recipe is a PruningError beside a model."""
    if arguments.overrides or arguments.start or arguments.fresh:
        wrong = arguments.overrides[0] if arguments.overrides else "--fresh" if arguments.fresh else "--redo"
        raise PruningError(
            f"{wrong} is for a recipe, and {arguments.recipe!r} is a model; its options are "
            f"{', '.join('--' + name.replace('_', '-') for name in options)}"
        )


def _writable(word: str) -> Path:
    """Return where a plan goes; a folder, or a file that holds something else, is a PruningError."""
    path = expanded(word)
    if not word.strip() or path.is_dir():
        what = "a folder" if word.strip() else "empty"
        raise PruningError(f"--save: {word!r} is {what}; name a file, such as plan.json")
    if path.exists():
        held = read_json(path, "name another file") or {}
        if not {"version", "kept", "removed_blocks"} <= set(held):
            raise PruningError(f"--save: {word} holds something that is no plan; name another file")
    return path


def _settings(arguments: argparse.Namespace) -> Prune | None:
    """Return what the options ask for, or None without a target."""
    given = {name: getattr(arguments, name) for name in TARGETS if getattr(arguments, name) is not None}
    others = [name for name in ("kinds", "round_to", "save") if getattr(arguments, name) is not None]
    if not given:
        smaller = any(getattr(arguments, name) is not None for name in FORMS)
        if others and not (smaller and others == ["save"]):
            raise PruningError(
                f"--{others[0].replace('_', '-')} is for a plan, and a plan needs a target: --macs, --params or --ratio"
            )
        return None
    changed: dict[str, Any] = {"target": Target(**given), "scope": "local"}
    if arguments.kinds is not None:
        changed["kinds"] = [kind.strip() for kind in arguments.kinds.split(",") if kind.strip()]
    if arguments.round_to is not None:
        changed["round_to"] = arguments.round_to
    settings = Prune(**changed)
    settings.check("plan")
    return settings
