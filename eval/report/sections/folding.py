"""A head before and after folding: what it puts out at each token, what a bias can stand for, and what is left."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.report import fmt, grids, svg
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections import Section

PLACE, WITHIN = 71, "heads"
PANEL = 60
LEFT = 176
MAX_BUCKETS = 8
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


@dataclass(frozen=True)
class HeadOutput:
    """What a head puts into the output of its attention module on one image: norms by token.

    Attributes:
        module: Module path.
        head: Its number.
        kept: It stays in the model.
        fluctuation_ratio: R_h of SCORES.md section 4, over all of calibration.
        grid: Token grid ``(rows, columns)``.
        before: ``||W_h x_hi||``, ``(T, N)``; T timestep buckets, N tokens.
        folded: ``||W_h mu_h||``: what a bias can put in its place.
        after: ``||W_h (x_hi - mu_h)||``, ``(T, N)``.
    """

    module: str
    head: int
    kept: bool
    fluctuation_ratio: float
    grid: tuple[int, int]
    before: NDArray[np.float64]
    folded: float
    after: NDArray[np.float64]

    @property
    def name(self) -> str:
        """Module and number."""
        return f"{self.module} head {self.head}"


def section(run: RunData) -> Section | None:
    """Draw every head that was looked at; None if there is nothing to draw or to say."""
    found = run.entry("folding")
    heads = [(head.name, describe(head), figure(head)) for head in read_outputs(run)]
    if not heads and not found.get("note"):
        return None
    return Section(BODY(heads=heads, note=found.get("note")))


def read_outputs(run: RunData) -> list[HeadOutput]:
    """Read what the heads that were looked at put out."""
    found = run.entry("folding")
    if not found.get("file"):
        return []
    tensors = run.tensors(found["file"])
    outputs = []
    for entry in found["heads"]:
        name, (rows, columns) = f"{entry['module']}/{entry['head']}", entry["grid"]
        before, folded, after = (tensors[f"{name}/{w}"].astype(float) for w in ("before", "folded", "after"))
        facts = (entry["module"], entry["head"], entry["kept"], entry["fluctuation_ratio"])
        outputs.append(HeadOutput(*facts, (rows, columns), before, float(folded[0]), after))
    return outputs


def describe(head: HeadOutput) -> str:
    """Say how much of the head's output a bias takes over, in calibration and on this image."""
    total = float(np.square(head.before).sum())
    left = float(np.square(head.after).sum()) / total if total > 0 else 0.0
    state = "Kept" if head.kept else "Pruned"
    return (
        f"{state}. Of its output energy {fmt.percent(min(head.fluctuation_ratio, 1.0), 0)} fluctuates around the mean "
        f"(R, over all of calibration); on this image {fmt.percent(left, 0)} is left after folding."
    )


def figure(head: HeadOutput) -> Markup:
    """Draw three rows of token grids, one column per timestep bucket, on one colour scale."""
    buckets = np.linspace(0, len(head.before) - 1, min(len(head.before), MAX_BUCKETS)).round().astype(int)
    flat = np.full_like(head.before, head.folded)
    drawn = [_image(values[buckets], head.grid) for values in (head.before, flat, head.after)]
    largest = max(float(values.max()) for values in drawn) or 1.0
    rows, columns = drawn[0].shape[1:]
    cell = PANEL / max(rows, columns)
    step_x, step_y = columns * cell + 8, rows * cell + 8
    parts: list[str] = []
    for line, (title, values) in enumerate(zip(ROWS, drawn, strict=True)):
        y = 1 + line * step_y
        parts.append(svg.label(LEFT - 12, y + rows * cell / 2 + 4, title, "t ink", "end"))
        for place, bucket in enumerate(buckets.tolist()):
            x = LEFT + place * step_x
            tip = f"{title}, bucket {bucket}: mean norm {fmt.number(float(values[place].mean()))}"
            parts.append(svg.rect(x, y, columns * cell, rows * cell, "h0", tip))
            parts.append(grids.cells(values[place] / largest, x, y, cell))
    foot, right = 1 + 3 * step_y, LEFT + len(buckets) * step_x - 8
    for place, bucket in enumerate(buckets.tolist()):
        middle = LEFT + place * step_x + columns * cell / 2
        parts.append(svg.label(middle, foot + 9, bucket, "t num", "middle"))
    stop = max(right, LEFT + 150)
    parts += grids.bucket_ends(LEFT, stop, foot + 26)
    start = stop + 34
    parts += _key(start, largest)
    alt = (
        f"Output norms of {head.name} by token and timestep bucket: before folding, the constant "
        f"that folding takes, and what is left; the darkest colour is {fmt.number(largest)}."
    )
    return svg.drawing("".join(parts), start + 90, foot + 32, alt)


def _image(values: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return norms (T, N) as pictures (T, rows, columns); large grids as means over blocks of tokens."""
    factor = math.ceil(max(grid) / grids.MAX_SIDE)
    return grids.pooled(values.reshape(-1, *grid), factor, np.nanmean, np.nan)


def _key(x: float, largest: float) -> list[str]:
    """Return the colour scale of the norms, upright, zero at its foot."""
    parts = [svg.label(x, 12, "norm", "t ink")]
    parts += [svg.rect(x, 20 + (8 - k) * 12, 14, 12, svg.heat_class(k / 8)) for k in range(9)]
    parts.append(svg.label(x + 20, 30, fmt.number(largest), "t num"))
    parts.append(svg.label(x + 20, 127, "0", "t num"))
    return parts
