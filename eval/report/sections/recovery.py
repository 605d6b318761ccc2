"""Recovery: the loss while the slim model was trained back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import template
from eval.report.sections import Section
from eval.report.svg import Scale

PLACE = 40
WINDOWS = 40  # means in the smoothed curve of the loss
MOST_STEPS = 600  # of the curve that shows every step

BODY = template(
    """
<p class="soft">Training loss after the cut
{%- if smoothed %}. Faint: every recorded step. Strong: mean over windows.{% else %}, step by step.{% endif %}</p>
<figure class="wide">{{ figure }}</figure>
"""
)


def section(run: RunData) -> Section | None:
    """Show the loss; None if nothing was trained."""
    steps, loss = (run.entry("recovery").get(key, []) for key in ("steps", "loss"))
    if not any(value is not None for value in loss):
        return None
    return Section(BODY(smoothed=is_smoothed(loss), figure=curve(steps, loss)), "Recovery")


def is_smoothed(loss: Sequence[float | None]) -> bool:
    """Tell whether there are enough losses for a mean over windows of at least two."""
    return sum(value is not None for value in loss) >= 2 * WINDOWS


def curve(steps: Sequence[float], loss: Sequence[float | None]) -> Markup:
    """Draw the loss: every step faint, and the mean of about forty windows strong if `is_smoothed`.

    Args:
        steps: Optimiser steps, rising.
        loss: One per step; None where it was not finite.
    """
    pairs = [(s, v) for s, v in zip(steps, loss, strict=True) if v is not None]
    values = [v for _, v in pairs]
    xs = Scale(steps[0], max(steps[-1], steps[0] + 1), 54, 730)
    ys = svg.value_scale(values, 232, 34)
    thin = max(1, len(pairs) // MOST_STEPS)
    raw = [None if v is None else (xs(s), ys(v)) for s, v in zip(steps[::thin], loss[::thin], strict=True)]
    body = svg.axes(xs, ys, "optimiser step", "loss (log)" if ys.log else "loss") + svg.path(raw, "raw")
    if is_smoothed(loss):
        window = len(pairs) // WINDOWS
        chunks = [pairs[start : start + window] for start in range(0, len(pairs), window)]
        means = [[math.fsum(column) / len(chunk) for column in zip(*chunk, strict=True)] for chunk in chunks]
        body += svg.path([(xs(step), ys(mean)) for step, mean in means], "line s2")
    alt = f"Recovery loss from {fmt.number(values[0])} to {fmt.number(values[-1])} over {len(steps)} records."
    return svg.drawing(body, 760, 280, alt)
