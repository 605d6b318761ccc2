"""Heads: attention to sinks against how much a head's output fluctuates, and what became of each head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections import Section
from eval.report.sites import SINK_MASS_FLOOR
from eval.report.svg import Scale

PLACE = 70
LABEL_SHAPES = {"nop": "triangle", "constant": "square", "gate": "diamond", "ordinary": "circle"}
CONSTANT_RATIO = 0.1  # R_h up to which a head of high sink mass is called constant (SCORES.md section 4)
HIGH_MASS = 0.3  # sink mass from which a head is called constant or gate

BODY = template(
    """
<p class="soft">R is the share of a head's output energy that fluctuates around its mean. A head with high sink mass and
low R is nearly a constant, which a bias can replace; with high R it works as a gate and should stay. The labels
describe; they do not decide.</p>
<div class="figures{% if figure %} uneven{% endif %}">
{% if figure %}<figure>{{ figure }}</figure>{% endif %}

<div>{% if not figure %}<p>No head has a sink mass of 5 % or more, so there is nothing to plot against.</p>{% endif %}

<table class="small">
<thead><tr><th scope="col">Label</th><th scope="col">Kept</th><th scope="col">Pruned</th></tr></thead>
<tbody>
{% for name, kept, cut in counts %}
<tr><th scope="row">{{ name }}</th><td>{{ kept }}</td><td>{{ cut }}</td></tr>
{% endfor %}
</tbody></table></div>
</div>
"""
)


@dataclass(frozen=True)
class Head:
    """Diagnostics of one attention head (SCORES.md section 4); `fluctuation_ratio` is R_h, None if undefined."""

    group: str
    head: int
    sink_mass: float
    fluctuation_ratio: float | None
    label: str
    kept: bool


def section(run: RunData) -> Section | None:
    """Show the heads; None if none were diagnosed."""
    heads = read_heads(run)
    if not heads:
        return None
    figure = diagnostics(heads) if any(head.sink_mass >= SINK_MASS_FLOOR for head in heads) else None
    return Section(BODY(figure=figure, counts=head_counts(heads)), "Attention heads", link="Heads")


def read_heads(run: RunData) -> list[Head]:
    """Read the diagnostics of all heads."""
    found = [entry for entry in run.entry("diagnostics").get("heads", []) if entry["sink_mass"] is not None]
    return [Head(**{key: entry[key] for key in Head.__dataclass_fields__}) for entry in found]


def diagnostics(heads: Sequence[Head]) -> Markup | None:
    """Draw sink mass against fluctuation ratio, one mark per head; None if no head has a ratio."""
    shown = [head for head in heads if head.fluctuation_ratio is not None]
    if not shown:
        return None
    ratios = [max(head.fluctuation_ratio or 0.0, 1e-4) for head in shown]
    low = 10.0 ** math.floor(math.log10(min(min(ratios), CONSTANT_RATIO / 2)))
    high = max(1.0, max(ratios)) * 1.15
    widest = max(head.sink_mass for head in shown)
    xs = Scale(0, min(1.0, max(math.ceil(widest * 10.5) / 10, HIGH_MASS + 0.1)), 54, 560)
    ys = Scale(low, high, 332, 50, log=True)
    body = svg.rect(
        xs(HIGH_MASS), ys(CONSTANT_RATIO), xs.stop - xs(HIGH_MASS), ys(low) - ys(CONSTANT_RATIO), "zone"
    )
    body += svg.axes(xs, ys, "sink mass of the head", "fluctuation ratio R (log)")
    body += svg.line(xs(HIGH_MASS), ys.stop, xs(HIGH_MASS), ys.start, "grid")
    body += svg.label(xs.stop - 8, ys.start - 10, "constant (prune and fold)", "t", "end")
    body += svg.label(xs.stop, ys.stop - 14, "right of the line: gate (keep)", "t", "end")
    for head, ratio in sorted(zip(shown, ratios, strict=True), key=lambda pair: pair[0].kept):
        state = "kept" if head.kept else "pruned"
        tip = (
            f"{head.group} head {head.head}: sink mass {fmt.number(head.sink_mass)}, "
            f"R {fmt.number(head.fluctuation_ratio)}, {head.label}, {state}"
        )
        shape = LABEL_SHAPES.get(head.label, "circle")
        body += svg.marker(
            xs(head.sink_mass), ys(ratio), shape, "head kept" if head.kept else "head cut", tip, 4.2
        )
    labels = [name for name in LABEL_SHAPES if any(head.label == name for head in shown)]
    entries = [(name, LABEL_SHAPES[name], "head key") for name in labels]
    entries += [("kept", "circle", "head kept"), ("pruned", "circle", "head cut")]
    body += svg.legend(entries, xs.start, 16)
    alt = f"Sink mass against fluctuation ratio for {len(shown)} heads, kept and pruned."
    return svg.drawing(body, 580, 384, alt)


def head_counts(heads: Sequence[Head]) -> list[tuple[str, int, int]]:
    """Return (label, kept, pruned) for every label that occurs, known labels first."""
    kept = Counter(head.label for head in heads if head.kept)
    cut = Counter(head.label for head in heads if not head.kept)
    order = [*LABEL_SHAPES, *sorted({*kept, *cut} - set(LABEL_SHAPES))]
    return [(name, kept[name], cut[name]) for name in order if kept[name] or cut[name]]
