"""Heads: attention to sinks against how much a head's output fluctuates, and what became of each head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import Section, template
from eval.report.sites import SINK_MASS_FLOOR

PLACE = 70
LABEL_SHAPES = {"nop": "triangle", "constant": "square", "gate": "diamond", "ordinary": "circle"}

BODY = template(
    """
<p class="soft">R is the share of a head's output energy that fluctuates around its mean. A head with high sink mass and
low R is nearly a constant, which a bias can replace; with high R it works as a gate and should stay. The labels
describe; they do not decide.</p>
<div class="figures{% if figure %} uneven{% endif %}">
{% if figure %}<figure>{{ figure }}</figure>{% endif %}

<div>{% if quiet %}<p>No head has a sink mass of 5 % or more in the mean over all timesteps, so there is nothing
to plot against.</p>{% endif %}

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


Head = Mapping[str, Any]
"""Diagnostics of an attention head (docs/scores.md section 4), and whether it stays."""


def section(run: RunData) -> Section | None:
    """Show the heads; None if none were diagnosed."""
    heads, bounds = (run.entry("diagnostics").get(key) for key in ("heads", "bounds"))
    if not heads:
        return None
    quiet = all(head["sink_mass"] < SINK_MASS_FLOOR for head in heads)
    figure = None if quiet or not bounds else diagnostics(heads, **bounds)
    body = BODY(figure=figure, quiet=quiet, counts=head_counts(heads))
    return Section(body, "Attention heads", link="Heads")


def diagnostics(heads: Sequence[Head], high_mass: float, low_fluctuation: float) -> Markup:
    """Draw sink mass against fluctuation ratio, one mark per head, and the bounds of the label ``constant``."""
    ratios = [max(head["fluctuation_ratio"], 1e-4) for head in heads]
    low = 10.0 ** math.floor(math.log10(min(*ratios, low_fluctuation / 2)))
    widest = max(head["sink_mass"] for head in heads)
    xs = svg.Scale(0, min(1.0, max(math.ceil(widest * 10.5) / 10, high_mass + 0.1)), 54, 560)
    ys = svg.Scale(low, max(1.0, *ratios) * 1.15, 332, 50, log=True)
    left, top = xs(high_mass), ys(low_fluctuation)
    body = svg.rect(left, top, xs.stop - left, ys(low) - top, "zone")
    body += svg.axes(xs, ys, "sink mass of the head", "fluctuation ratio R (log)")
    body += svg.line(left, ys.stop, left, ys.start, "grid")
    body += svg.label(xs.stop - 8, ys.start - 10, "constant (prune and fold)", "t", "end")
    body += svg.label(xs.stop, ys.stop - 14, "right of the line: gate (keep)", "t", "end")
    for head, ratio in sorted(zip(heads, ratios, strict=True), key=lambda pair: pair[0]["kept"]):
        state, cls = ("kept", "head kept") if head["kept"] else ("pruned", "head cut")
        tip = (
            f"{head['group']} head {head['head']}: sink mass {fmt.number(head['sink_mass'])}, "
            f"R {fmt.number(head['fluctuation_ratio'])}, {head['label']}, {state}"
        )
        body += svg.marker(xs(head["sink_mass"]), ys(ratio), LABEL_SHAPES[head["label"]], cls, tip, 4.2)
    labels = {head["label"] for head in heads}
    entries = [(name, shape, "head key") for name, shape in LABEL_SHAPES.items() if name in labels]
    entries += [("kept", "circle", "head kept"), ("pruned", "circle", "head cut")]
    body += svg.legend(entries, xs.start, 16)
    alt = f"Sink mass against fluctuation ratio for {len(heads)} heads, kept and pruned."
    return svg.drawing(body, 580, 384, alt)


def head_counts(heads: Sequence[Head]) -> list[tuple[str, int, int]]:
    """Return (label, kept, pruned) for every label that occurs."""
    count = Counter((head["label"], head["kept"]) for head in heads)
    found = [(name, count[name, True], count[name, False]) for name in LABEL_SHAPES]
    return [row for row in found if any(row[1:])]
