"""The model card: what was pruned, from what, how much, how it was measured, and how to load it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers
import torch
from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from pruning.errors import PruningError
from pruning.export.base import ExportRequest
from pruning.groups import discover
from pruning.surgery.check import inside
from pruning.types import PRUNING_KEY

FACTS = {
    "title": "Heading (text); else the folder's name.",
    "summary": "First paragraph (text).",
    "base_model": "Hub id or path of the dense model (text).",
    "license": "Licence identifier as the hub knows it (text); else the base model's holds.",
    "data": "What it was calibrated and trained on (text).",
    "asked": "Target and settings (mapping).",
    "got": "What came of it: parameters, MACs, ratios (mapping).",
    "recovery": "How it was trained back (mapping or text).",
    "metrics": "Subject -> metric -> value (mapping of mappings). A value is a number, a text, or a mapping "
    "of value and interval. The last subject is this model: the hub shows its numbers.",
    "measured": "How the metrics were measured: samples, steps, device, threads (text or list of texts).",
    "limits": "Further limits (list of texts).",
    "recipe": "The recipe (YAML text).",
    "versions": "Library -> version (mapping).",
}
"""What a card may say; everything is optional."""

TEXT_SETTINGS = ("cross_attention_dim", "joint_attention_dim", "caption_channels")
"""Entries of a denoiser's config that say how wide the text is that it listens to."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")

_KIND_NAMES = {
    "attention_heads": "attention heads",
    "ffn_channels": "feed-forward channels",
    "resnet_channels": "ResNet channel groups",
    "blocks": "removable blocks",
}


def model_card(request: ExportRequest, part: str, scheduler: str | None, *, whole_pipeline: bool) -> str:
    """Return the text of ``README.md``.

    Args:
        request: With the facts (see `FACTS`).
        part: The denoiser's folder.
        scheduler: Class of the scheduler beside it, or None.
        whole_pipeline: Whether the folder is a whole pipeline.

    Raises:
        PruningError: If a fact is unknown.
    """
    facts = request.card
    if unknown := sorted(set(facts) - set(FACTS)):
        raise PruningError(f"export: unknown card fact {unknown[0]!r}; valid: {', '.join(FACTS)}")
    model = request.model
    pruned = PRUNING_KEY in getattr(model, "config", {})
    title = _one_line(facts.get("title", request.name))
    sections = [
        f"---\n{_metadata(model, title, facts).to_yaml()}\n---",
        f"# {title}",
        facts.get("summary") or _summary(model, facts, request.dtype),
        _loading(request, part, pruned, whole_pipeline),
        _section("What was pruned", _cuts(model), _table(facts.get("got"), "what it has")),
        _section("What was asked", _table(facts.get("asked"), "setting")),
        _section("Recovery", _text_or_table(facts.get("recovery"))),
        _section("Measured", _metrics(facts.get("metrics")), _lines(facts.get("measured"))),
        _section("Data", facts.get("data")),
        _section("Limits", _lines([*_limits(pruned, scheduler), *_as_list(facts.get("limits"))])),
        _section("Licence", _licence(facts)),
        _section("Recipe", f"```yaml\n{facts['recipe'].strip()}\n```" if facts.get("recipe") else None),
        _section("Made with", _table(facts.get("versions"), "library")),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(model: nn.Module, title: str, facts: Mapping[str, Any]) -> ModelCardData:
    """Return what the hub reads: licence, base model (only if it is on the hub, nothing else is taken), results."""
    base = facts.get("base_model") or ""
    results = _results(model, facts)
    return ModelCardData(
        library_name="diffusers",
        license=facts.get("license") or None,
        base_model=base if _HUB_ID.fullmatch(base) else None,
        tags=["sinkprune", "structured-pruning"],
        model_name=title if results else None,
        eval_results=results or None,
    )


def _results(model: nn.Module, facts: Mapping[str, Any]) -> list[EvalResult]:
    """Return the numbers that were measured on this model, as entries of the hub's ``model-index``."""
    config = getattr(model, "config", {})
    task = (
        "text-to-image" if any(config.get(key) for key in TEXT_SETTINGS) else "unconditional-image-generation"
    )
    data = _one_line(facts.get("data") or "unknown")
    measured = list((facts.get("metrics") or {}).values())[-1:]
    return [
        EvalResult(
            task_type=task,
            dataset_type=data if _HUB_ID.fullmatch(data) else _slug(data.rstrip("/").rpartition("/")[2]),
            dataset_name=data,
            metric_type=_slug(name),
            metric_name=name,
            metric_value=number,
        )
        for values in measured
        for name, value in values.items()
        if isinstance(number := _split(value)[0], (int, float)) and not isinstance(number, bool)
    ]


def _slug(text: str) -> str:
    """Return an identifier: ``Fréchet distance`` is ``frechet-distance``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _summary(model: nn.Module, facts: Mapping[str, Any], dtype: torch.dtype) -> str:
    origin = f" of `{facts['base_model']}`" if facts.get("base_model") else ""
    count = sum(p.numel() for p in model.parameters())
    kind = str(dtype).removeprefix("torch.")
    return (
        f"A structurally pruned copy{origin}: `{type(model).__name__}` with {count:,} parameters in {kind}. "
        "The layers are smaller, no weight is masked, and no special kernel is needed."
    )


def _loading(request: ExportRequest, part: str, pruned: bool, whole_pipeline: bool) -> str:
    cls = "DiffusionPipeline" if whole_pipeline else type(request.model).__name__
    subfolder = "" if whole_pipeline else f', subfolder="{part}"'
    target = "pipeline" if whole_pipeline else "model"
    lines = [
        "import pruning  # the package sinkprune: lets diffusers build the slim shapes" if pruned else "",
        f"from diffusers import {cls}",
        "",
        'folder = "."  # the folder of this card: its path, or its name on the hub',
        f"{target} = {cls}.from_pretrained(folder{subfolder})",
    ]
    code = "\n".join(lines).strip()
    return f"## Load it\n\n```python\n{code}\n```"


def _cuts(model: nn.Module) -> str | None:
    """Return a table of units kept by kind, against the stock architecture of the same config."""
    entry = model.config.get(PRUNING_KEY) if hasattr(model, "config") else None  # type: ignore[union-attr]
    if entry is None:
        return None
    stock_config = {key: value for key, value in dict(model.config).items() if key != PRUNING_KEY}  # type: ignore[arg-type]
    with torch.device("meta"):
        stock: nn.Module = type(model).from_config(stock_config)  # type: ignore[attr-defined]
    before, after = _units(stock, model, entry.get("removed_blocks") or [])
    rows = [
        f"| {_KIND_NAMES.get(kind, kind)} | {after[kind]} | {total} | {1 - after[kind] / total:.0%} |"
        for kind, total in before.items()
        if after[kind] < total
    ]
    if not rows:
        return None
    dense = sum(p.numel() for p in stock.parameters())
    count = sum(p.numel() for p in model.parameters())
    header = "| kind | kept | of | removed |\n|---|---:|---:|---:|"
    size = f"{count:,} parameters; the stock architecture of its config has {dense:,} ({count / dense:.1%} kept)."
    return header + "\n" + "\n".join(rows) + f"\n\n{size}"


def _units(stock: nn.Module, model: nn.Module, removed: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Count units by kind, of the stock architecture and of what is left of them in `model`."""
    before, after = Counter[str](), Counter[str]()
    found = {group.name: group.num_units for group in discover(model)}
    for group in discover(stock):
        gone = any(inside(group.module, path) for path in removed)
        before[group.kind] += group.num_units
        after[group.kind] += found.get(
            group.name, 0 if gone else 1
        )  # a last unit is no group: it has to stay
    return before, after


def _limits(pruned: bool, scheduler: str | None) -> list[str]:
    limits = []
    if pruned:
        limits += [
            f"Without `import pruning`, diffusers {diffusers.__version__} refuses to load it because of its shapes.",
            "`Class(**model.config)` builds the dense architecture; use `from_pretrained` or `from_config`.",
        ]
    if scheduler is None:
        limits.append("No scheduler is included; use the base model's.")
    limits.append("Pruning changes what the model generates; judge it on your own data before relying on it.")
    return limits


def _licence(facts: Mapping[str, Any]) -> str:
    if facts.get("license"):
        return f"{facts['license']}."
    base = f"`{facts['base_model']}`" if facts.get("base_model") else "the base model"
    return f"The weights derive from {base}; its licence holds for them."


def _metrics(metrics: Any) -> str | None:
    if not metrics:
        return None
    subjects = list(metrics)
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    header = "| | " + " | ".join(_cell(s) for s in subjects) + " |\n|---|" + "---:|" * len(subjects)
    rows = [
        f"| {_cell(name)} | " + " | ".join(_measurement(metrics[s].get(name, "")) for s in subjects) + " |"
        for name in names
    ]
    return header + "\n" + "\n".join(rows)


def _split(value: Any) -> tuple[Any, Sequence[float] | None]:
    """Return the value of a metric, and its interval if it has one."""
    return (
        (value["value"], value["interval"])
        if isinstance(value, Mapping) and "value" in value
        else (value, None)
    )


def _measurement(value: Any) -> str:
    number, interval = _split(value)
    return f"{_cell(number)} ({interval[0]:.3g} to {interval[1]:.3g})" if interval else _cell(number)


def _table(values: Any, what: str) -> str | None:
    if not values:
        return None
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items()]
    return f"| {what} | |\n|---|---:|\n" + "\n".join(rows)


def _text_or_table(value: Any) -> str | None:
    return value if isinstance(value, str) else _table(value, "setting")


def _lines(values: Any) -> str | None:
    items = _as_list(values)
    return "\n".join(f"- {item}" for item in items) if items else None


def _as_list(values: Any) -> Sequence[str]:
    if not values:
        return []
    return [values] if isinstance(values, str) else list(values)


def _section(title: str, *parts: str | None) -> str | None:
    body = "\n\n".join(part for part in parts if part)
    return f"## {title}\n\n{body}" if body else None


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        text = {True: "yes", False: "no", None: "none"}[value]
    elif isinstance(value, float):
        text = f"{value:.4g}"
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, (list, tuple)):
        text = ", ".join(_cell(entry) for entry in value)
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name} {_cell(entry)}" for name, entry in value.items())
    else:
        text = str(value)
    return text.replace("|", "\\|").replace("\n", " ")
