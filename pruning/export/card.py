"""The model card: what was pruned, from what, how much, how it was measured, and how to load it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined
from torch import nn

from pruning.files import without_folders
from pruning.types import PRUNING_KEY, config_of

TEXT_SETTINGS = ("cross_attention_dim", "joint_attention_dim", "caption_channels")
"""Entries of a denoiser's config that say how wide the text is that it listens to."""

LICENCE = ("license", "license_name", "license_link")
"""What a card on the hub says of a licence."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")

Measurement = tuple[float, Sequence[float] | None]
"""A number, and its 95 % interval if it has one."""


@dataclass(frozen=True)
class Facts:
    """What a card says beside what the model says itself; everything may be left out.

    Of paths a card says the last part alone: a card is for others, and folders are of one machine.

    Attributes:
        title: Heading; else the model's class.
        base_model: Hub id or path of the dense model.
        licence: What the dense model's card says of its licence: ``license``, ``license_name``, ``license_link``.
        data: What it was calibrated and trained on.
        asked: Target and settings.
        got: What came of it: ratios of MACs and parameters, units removed.
        recovery: How it was trained back.
        metrics: Subject -> metric -> measurement. The last subject is this model: the hub shows its numbers.
        measured: How that was measured: samples, steps, device, threads.
        recipe: The recipe (YAML).
        versions: Library -> version.
    """

    title: str = ""
    base_model: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)
    data: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)
    got: Mapping[str, Any] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Measurement]] = field(default_factory=dict)
    measured: Sequence[str] = ()
    recipe: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def model_card(
    model: nn.Module,
    dtype: torch.dtype,
    facts: Facts,
    *,
    part: str,
    whole_pipeline: bool,
) -> str:
    """Return the text of ``README.md``; its words are in ``card.md.jinja``.

    Args:
        model: The model of the card.
        dtype: Type of the written weights.
        facts: What is known of it.
        part: The denoiser's folder.
        whole_pipeline: Whether the folder is a whole pipeline.
    """
    facts = replace(facts, **{one.name: without_folders(getattr(facts, one.name)) for one in fields(facts)})
    title = _one_line(facts.title) or type(model).__name__
    return _TEMPLATE.render(
        facts=facts,
        title=title,
        metadata=_metadata(model, title, facts).to_yaml(),
        class_name=type(model).__name__,
        params=sum(p.numel() for p in model.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        pruned=PRUNING_KEY in config_of(model),
        metric_names=list(dict.fromkeys(name for found in facts.metrics.values() for name in found)),
        part=part,
        whole_pipeline=whole_pipeline,
        diffusers_version=diffusers.__version__,
    )


def _metadata(model: nn.Module, title: str, facts: Facts) -> ModelCardData:
    """Return what the hub reads: base model and data (only if they are on the hub), licence, results with intervals."""
    text = any(config_of(model).get(key) for key in TEXT_SETTINGS)
    data = _one_line(facts.data) or "unknown"
    licence: dict[str, Any] = {key: facts.licence.get(key) for key in LICENCE}
    results = [
        EvalResult(
            task_type="text-to-image" if text else "unconditional-image-generation",
            dataset_type=data if _HUB_ID.fullmatch(data) else _slug(data.rstrip("/").rpartition("/")[2]),
            dataset_name=data,
            metric_type=_slug(name),
            metric_name=name,
            metric_value=value,
            metric_args={"ci95": [*interval]} if interval else None,
        )
        for found in list(facts.metrics.values())[-1:]
        for name, (value, interval) in found.items()
    ]
    return ModelCardData(
        library_name="diffusers",
        base_model=facts.base_model if _HUB_ID.fullmatch(facts.base_model) else None,
        datasets=[data] if _HUB_ID.fullmatch(data) else None,
        **licence,
        tags=["sinkprune", "structured-pruning"],
        model_name=title if results else None,
        eval_results=results or None,
    )


def _slug(text: str) -> str:
    """Return an identifier: ``Fréchet distance`` is ``frechet-distance``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(value: Any) -> str:
    """Return a value as the text of a cell, which cannot break its table."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_cell(name)} {_cell(entry)}" for name, entry in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    text = (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )
    return text.replace("|", "\\|").replace("\n", " ")


def _measured(measurement: Measurement) -> str:
    value, interval = measurement
    return f"{_cell(value)} ({interval[0]:.3g} to {interval[1]:.3g})" if interval else _cell(value)


_ENVIRONMENT = Environment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)
_ENVIRONMENT.filters.update(cell=_cell, measured=_measured)
_TEMPLATE = _ENVIRONMENT.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
