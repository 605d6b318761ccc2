"""Recovery: the loss while the slim model was trained back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from eval.report import fmt, svg
from eval.report.data import RunData
from eval.report.html import PATHS, Section, template

PLACE = 40
WINDOWS = 40  # means in the smoothed curve of the loss
MOST_STEPS = 600  # of the curve that shows every step

BODY = template(
    """
<p class="soft">Training loss after the cut
{%- if blocks %}, mean over {{ blocks }} blocks that were each trained by itself{% endif %}
{%- if smoothed %}. Faint: every recorded step. Strong: mean over windows.{% else %}, step by step.{% endif %}</p>
<figure class="wide">{{ figure }}</figure>
{% if table %}
<details><summary>All {{ blocks }} blocks: error on held-out inputs, squared, by the dense output's square</summary>
{{ table }}</details>
{% endif %}
"""
)


def section(run: RunData) -> Section | None:
    """Show the loss; None if nothing was trained."""
    steps, loss = (run.entry("recovery").get(key, []) for key in ("steps", "loss"))
    if not loss:
        return None
    blocks = run.entry("recovery").get("blocks", [])
    rows = [(block["block"], _cells(block)) for block in blocks]
    table = PATHS(names=("cut", "trained", "taken"), rows=rows) if rows else None
    smoothed = len(loss) >= 2 * WINDOWS
    body = BODY(smoothed=smoothed, figure=curve(steps, loss), blocks=len(blocks), table=table)
    return Section(body, "Recovery")


def _cells(block: Mapping[str, Any]) -> list[str]:
    taken = "yes" if block["kept"] else "no, it stays as it was cut"
    return [fmt.number(block["before"]), fmt.number(block["after"]), taken]


def curve(steps: Sequence[int], loss: Sequence[float]) -> Markup:
    """Draw the loss by optimiser step: every step faint, and if there are many the mean over windows strong."""
    xs = svg.Scale(steps[0], max(steps[-1], steps[0] + 1), 54, 730)
    ys = svg.value_scale(loss, 232, 34)
    thin = max(1, len(loss) // MOST_STEPS)
    raw = [(xs(s), ys(v)) for s, v in zip(steps[::thin], loss[::thin], strict=True)]
    body = svg.axes(xs, ys, "optimiser step", "loss (log)" if ys.log else "loss") + svg.path(raw, "raw")
    if len(loss) >= 2 * WINDOWS:
        window = len(loss) // WINDOWS
        chunks = [slice(start, start + window) for start in range(0, len(loss), window)]
        body += svg.path([(xs(fmean(steps[c])), ys(fmean(loss[c]))) for c in chunks], "line s2")
    alt = f"Recovery loss from {fmt.number(loss[0])} to {fmt.number(loss[-1])} over {len(steps)} records."
    return svg.drawing(body, 760, 280, alt)
