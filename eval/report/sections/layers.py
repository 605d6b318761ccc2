"""Layers: what each gave up and at which predicted error, so that one sees where cost was won and which layers paid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eval.report import fmt
from eval.report.data import RunData
from eval.report.html import PATHS, Section, template
from eval.report.sections.cuts import kind_words, read_cuts

PLACE, WITHIN = 31, "cuts"
MOST_BARS = 20
"""Layers that are drawn; the table has all."""
FEW_ROWS = 8
"""Layers up to which the table is not folded."""
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time of a call", fmt.seconds),
    "macs": ("MACs", fmt.quantity),
    "params": ("parameters", fmt.quantity),
}
"""Costs by name, in words and as text; the first that is known is the one that layers are sorted by."""

Row = Mapping[str, Any]
"""What a group gave and paid; see `pruning.stages.layers`."""

BARS = template(
    """
<div class="bars two{% if not paid %} one{% endif %}" role="list">
<div><span class="name"></span><span class="soft">freed, of the dense {{ name }}</span><span class="num"></span>
{%- if paid %}<span class="soft">of the predicted error</span><span class="num"></span>{% endif %}</div>
{% for row in rows %}
<div role="listitem"><span class="name path" title="{{ row.kind }}, {{ row.words }}">{{ row.module }}</span>
<span class="bar {{ row.cls }}"><i style="width:{{ row.gave[0] }}%"></i></span>
<span class="num">{{ row.gave[1] }}</span>
{%- if paid %}
<span class="bar s1"><i style="width:{{ row.paid[0] }}%"></i></span>
<span class="num">{{ row.paid[1] }}</span>
{%- endif %}
</div>
{% endfor %}
</div>
"""
)
BODY = template(
    """
<h3 style="margin-top:22px">Which layers pay most</h3>
<p class="soft">{{ words }}</p>
{{ bars }}
{% if folded %}<details><summary>All {{ folded }} layers that gave something</summary>{{ table }}</details>
{% else %}<div style="margin-top:14px">{{ table }}</div>{% endif %}
<p class="detail" style="margin-top:10px">{{ small }}</p>
"""
)


def section(run: RunData) -> Section | None:
    """Show what layers gave and paid; None for a run that says nothing of it."""
    found = run.entry("layers")
    if not found:
        return None
    cost = next(name for name in COSTS if name in found["dense"])
    rows = sorted(found["rows"], key=lambda row: -row["freed"][cost])
    whole = sum(row["score"] for row in rows) if found["errors"] else 0.0
    drawn = _drawn(rows, cost, whole)
    gave = [row["freed"][cost] / found["dense"][cost] for row in drawn]
    paid = [row["score"] / whole for row in drawn] if whole else []
    body = BODY(
        words=_words(found, rows, cost, whole),
        bars=bars(drawn, gave, paid, COSTS[cost][0]),
        table=_table(found, rows, cost, whole),
        folded=len(rows) if len(rows) > FEW_ROWS else 0,
        small=_small(found, cost, whole),
    )
    return Section(body)


def _drawn(rows: Sequence[Row], cost: str, whole: float) -> list[Row]:
    """Return the rows that gave or paid most, by their shares of both, in the order of `rows`."""
    freed = sum(max(0.0, row["freed"][cost]) for row in rows) or 1.0

    def weight(row: Row) -> float:
        return max(0.0, row["freed"][cost]) / freed + (row["score"] / whole if whole else 0.0)

    most = sorted(range(len(rows)), key=lambda index: -weight(rows[index]))[:MOST_BARS]
    return [rows[index] for index in sorted(most)]


def _words(found: Mapping[str, Any], rows: Sequence[Row], cost: str, whole: float) -> str:
    """Say how many layers half of the cost was won by, and which ones half of the predicted error came from."""
    name, dense = COSTS[cost][0], found["dense"][cost]
    freed = sum(row["freed"][cost] for row in rows)
    if len(rows) < 2 or freed <= 0:
        return f"What each layer gave up of the {name} of the dense model."
    first = _half(rows, lambda row: row["freed"][cost])
    said = (
        f"Half of what was freed of the {name} (in all {fmt.percent(1 - found['plan'][cost] / dense, 0)} of the dense "
        f"model's) came from {len(first)} of {len(rows)} layers."
    )
    if whole:
        dear = _half(rows, lambda row: row["score"])
        share = sum(row["freed"][cost] for row in dear) / freed
        said += (
            f" Half of the predicted error came from {_listed([row['module'] for row in dear])}, which gave "
            f"{fmt.percent(share, 0)} of what was freed."
        )
    if len(rows) > MOST_BARS:
        said += f" Drawn are the {MOST_BARS} that gave{' or paid' if whole else ''} most."
    return said


def _half(rows: Sequence[Row], size: Callable[[Row], float]) -> list[Row]:
    """Return the fewest rows that make up half of a size, the largest first."""
    found, whole, sofar = [], sum(map(size, rows)), 0.0
    for row in sorted(rows, key=size, reverse=True):
        found.append(row)
        sofar += size(row)
        if sofar >= whole / 2:
            break
    return found


def _listed(names: Sequence[str], most: int = 3) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - most
    shown = names if more <= 0 else [*names[:most], f"{more} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _small(found: Mapping[str, Any], cost: str, whole: float) -> str:
    parts = [
        f"Freed: what a call saves of the {COSTS[cost][0]} if this layer alone is cut, as a share of the dense model's."
    ]
    if whole:
        parts.append(
            f"Predicted error: the sum of the scores (criterion {found['criterion']}) of the units that went, as a "
            "share of that of all layers, before training. Error per cost: its share of the error over its share of "
            "what was freed; 1 is the mean."
        )
        if not found["comparable"]:
            parts.append(
                "This criterion judges each layer by that layer's own output, so errors of different layers are no "
                "exact measure of what the model's output feels."
            )
    else:
        parts.append(f"Scores of the criterion {found['criterion']} are no errors: they have no zero.")
    return " ".join(parts)


def _table(found: Mapping[str, Any], rows: Sequence[Row], cost: str, whole: float) -> Markup:
    costs = [name for name in COSTS if name in found["dense"]]
    names = ["kept", *(f"{COSTS[name][0]} freed" for name in costs)]
    names += ["of the predicted error", "error per cost"] if whole else []
    freed = sum(row["freed"][cost] for row in rows)
    lines = []
    for row in rows:
        cells = [f"{row['kept']:,} of {row['total']:,}" if row["kept"] else "gone"]
        cells += [
            f"{COSTS[name][1](row['freed'][name])} ({fmt.percent(row['freed'][name] / found['dense'][name])})"
            for name in costs
        ]
        if whole:
            error, share = row["score"] / whole, row["freed"][cost] / freed if freed > 0 else 0.0
            cells += [fmt.percent(error), fmt.number(error / share, 2) if share > 0 else fmt.MISSING]
        lines.append((row["module"], cells))
    return PATHS(names=names, rows=lines)


def bars(rows: Sequence[Row], gave: Sequence[float], paid: Sequence[float], name: str) -> Markup:
    """Draw beside the names of layers what each gave, a share of the dense cost `name`, and what it paid.

    `paid`, the shares of the predicted error, is empty where these are not known.
    """
    lines = [
        {
            **row,
            "gave": _bar(gave[index], max(gave)),
            "paid": _bar(paid[index], max(paid)) if paid else None,
            "kind": kind_words(row["kind"]),
        }
        for index, row in enumerate(read_cuts([{**row, "removed": not row["kept"]} for row in rows]))
    ]
    return BARS(rows=lines, name=name, paid=bool(paid))


def _bar(share: float, most: float) -> tuple[str, str]:
    """Return how long a bar is, in percent of the longest, and its words."""
    return f"{100 * max(0.0, share) / most:.1f}" if most > 0 else "0", fmt.percent(share)
