"""Weights in a smaller form: the rank of each modulation layer and what it loses, and embedders that became one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import PATHS, Section, template

PLACE, WITHIN = 34, "cuts"
SHOWN = 12
"""Layers up to which all are listed at once."""

COLUMNS = ("rank", "parameters left")
BODY = template(
    """
<h3 style="margin-top:22px">Weights in a smaller form</h3>
{% for text in words %}<p class="soft">{{ text }}</p>{% endfor %}
{% if table %}
{% if folded %}<details><summary>All {{ folded }} layers</summary>{{ table }}</details>{% else %}{{ table }}{% endif %}
{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show what took a smaller form; None if nothing was to."""
    found = run.entry("smaller_forms")
    if not found:
        return None
    layers = found.get("modulation", [])
    where = "held out" if found.get("held_out") else "other draws"
    words = [text for text in (_modulation(found, layers, where), _shared(found.get("shared"))) if text]
    rows = [(layer["module"], _cells(layer)) for layer in layers]
    table = PATHS(names=(*COLUMNS, f"lost, {where}", "lost, calibration"), rows=rows) if rows else None
    return Section(BODY(words=words, table=table, folded=len(layers) if len(layers) > SHOWN else 0))


def _cells(layer: Mapping[str, Any]) -> list[str]:
    if layer["rank"] is None:
        return ["whole", fmt.percent(1.0, 0), fmt.MISSING, fmt.MISSING]
    left = fmt.percent(1 - layer["saved"] / layer["params"], 0)
    lost = [fmt.number(layer[key]) for key in ("lost", "lost_fitted")]
    return [f"{layer['rank']} of {layer['full']}", left, *lost]


def _modulation(found: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], where: str) -> str:
    low = [layer for layer in layers if layer["rank"] is not None]
    if not layers:
        return ""
    if not low:
        return (
            "Modulation layers were to take a low-rank form, but none that loses so little saves parameters."
        )
    saved, params = (sum(layer[key] for layer in layers) for key in ("saved", "params"))
    seen = (
        "images by which ranks, but not directions, were chosen"
        if where == "held out"
        else "other draws of the images by which directions were chosen"
    )
    worst = max(layer["lost"] for layer in low)
    return (
        f"{len(low)} of {fmt.plural(len(layers), 'modulation layer')} took a low-rank form, which frees "
        f"{fmt.quantity(saved)} of their {fmt.quantity(params)} parameters. What is lost is a share of the variance of "
        f"the layer's output, here at most {fmt.number(worst)} on {seen}{_asked(found)}."
    )


def _asked(found: Mapping[str, Any]) -> str:
    """Say what was asked, where a run says it."""
    if "asked" not in found:
        return ""
    rounded = f"; ranks are rounded up to multiples of {found['multiple']}" if found["multiple"] > 1 else ""
    return f" (asked: at most {fmt.number(found['asked'])}{rounded})"


def _shared(sets: Sequence[Mapping[str, Any]] | None) -> str:
    if sets is None:
        return ""
    if not sets:
        return "Equal embedders were to become one, but no two are equal, weight for weight."
    count, saved = sum(len(one["modules"]) for one in sets), sum(one["saved"] for one in sets)
    names = ", ".join(f"{one['modules'][0]} (for {len(one['modules'])})" for one in sets)
    return (
        f"{count} embedders that were equal, weight for weight, became {len(sets)}, which frees "
        f"{fmt.quantity(saved)} parameters; nothing is lost: {names}."
    )
