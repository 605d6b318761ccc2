"""A head before and after folding: what it puts out at each token, what a bias can stand for, and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.report import fmt, grids, svg
from eval.report.data import RunData
from eval.report.html import Section, template

PLACE, WITHIN = 71, "heads"
PANEL = 60
LEFT = 176
MAX_BUCKETS = 8
Norms = NDArray[np.float64]
ROWS = ("output of the head", "folded into the bias", "left after folding")

BODY = template(
    """
<h3 style="margin-top:22px">A head before and after folding</h3>
{% if heads %}
<p class="soft">How strong a head's output is at each token of one image, by timestep. Folding moves the mean of its
output into a bias; what is left is lost with the head. The most constant heads come first, the least constant one last
for contrast; each head has its own colour scale.</p>
{% endif %}
{% for name, words, figure in heads %}
<div class="site"><h3 class="path">{{ name }}</h3><p>{{ words }}</p><div class="scroll">{{ figure }}</div></div>
{% endfor %}
{% if note %}<p class="soft">{{ note }}</p>{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Draw every head that was looked at; None if there is nothing to draw or to say."""
    found = run.entry("folding")
    if not found:
        return None
    tensors, heads = run.tensors(found["file"]) if "file" in found else {}, []
    for head in found.get("heads", []):
        key, name = f"{head['module']}/{head['head']}", f"{head['module']} head {head['head']}"
        before, folded, after = (tensors[f"{key}/{w}"].astype(float) for w in ("before", "folded", "after"))
        drawn = figure(name, head["grid"], before, folded, after)
        heads.append((name, describe(head, before, after), drawn))
    return Section(BODY(heads=heads, note=found.get("note")))


def describe(head: Mapping[str, Any], before: Norms, after: Norms) -> str:
    """Say how much of a head's output a bias takes over: R_h of docs/scores.md section 4, and on this image."""
    total = float(np.square(before).sum())
    left = float(np.square(after).sum()) / total if total > 0 else 0.0
    return (
        f"{'Kept' if head['kept'] else 'Pruned'}. Of its output energy "
        f"{fmt.percent(min(head['fluctuation_ratio'], 1.0), 0)} fluctuates around the mean (R, over all of "
        f"calibration); on this image {fmt.percent(left, 0)} is left after folding."
    )


def figure(name: str, grid: list[int], before: Norms, folded: Norms, after: Norms) -> Markup:
    """Draw three rows of token grids, one column per timestep bucket, on one colour scale.

    Args:
        name: Of the head.
        grid: Rows and columns of the tokens.
        before: ``||W_h x_hi||``, ``(T, N)``; T timestep buckets, N tokens.
        folded: ``||W_h mu_h||``, ``(1,)``: what a bias can put in its place.
        after: ``||W_h (x_hi - mu_h)||``, ``(T, N)``.
    """
    buckets = np.linspace(0, len(before) - 1, min(len(before), MAX_BUCKETS)).round().astype(int)
    rows_of = (before, np.full_like(before, folded), after)
    drawn = [grids.pooled(values[buckets], grid, np.nanmean, np.nan) for values in rows_of]
    largest = max(float(values.max()) for values in drawn) or 1.0
    rows, columns = drawn[0].shape[1:]
    cell = PANEL / max(rows, columns)
    step_x, step_y = columns * cell + 8, rows * cell + 8
    foot, right = 1 + 3 * step_y, LEFT + len(buckets) * step_x - 8
    body = ""
    for line, (title, values) in enumerate(zip(ROWS, drawn, strict=True)):
        y = 1 + line * step_y
        body += svg.label(LEFT - 12, y + rows * cell / 2 + 4, title, "t ink", "end")
        for place, (bucket, norms) in enumerate(zip(buckets, values, strict=True)):
            tip = f"{title}, bucket {bucket}: mean norm {fmt.number(float(norms.mean()))}"
            body += grids.panel(norms / largest, LEFT + place * step_x, y, cell, tip)
    for place, bucket in enumerate(buckets):
        middle = LEFT + place * step_x + columns * cell / 2
        body += svg.label(middle, foot + 9, bucket, "t num", "middle")
    stop = max(right, LEFT + 150)
    body += grids.bucket_ends(LEFT, stop, foot + 26) + _key(stop + 34, largest)
    alt = (
        f"Output norms of {name} by token and timestep bucket: before folding, the constant "
        f"that folding takes, and what is left; the darkest colour is {fmt.number(largest)}."
    )
    return svg.drawing(body, stop + 124, foot + 32, alt)


def _key(x: float, largest: float) -> str:
    scale = "".join(svg.rect(x, 20 + (8 - k) * 12, 14, 12, svg.heat_class(k / 8)) for k in range(9))
    ends = svg.label(x + 20, 30, fmt.number(largest), "t num") + svg.label(x + 20, 127, "0", "t num")
    return svg.label(x, 12, "norm", "t ink") + scale + ends
