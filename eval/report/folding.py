"""A head before and after folding: what it puts out at each token, what a bias can say for it, and what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.report import fmt, maps, svg
from eval.report.svg import Figure
from eval.report.tensors import HeadOutput

PANEL = 60
LEFT = 150
MAX_BUCKETS = 8


@dataclass(frozen=True)
class Folding:
    """The drawings of a few heads, each with its words; `note` says why there are none, or is empty."""

    heads: list[tuple[str, str, Figure]]
    note: str


def folding(outputs: Sequence[HeadOutput], note: str) -> Folding | None:
    """Draw every head that was looked at; None if there is nothing to draw or to say."""
    drawn = [
        (f"{head.module} head {head.head}", describe(head), _figure(head, index))
        for index, head in enumerate(outputs)
    ]
    return Folding(drawn, note) if drawn or note else None


def describe(head: HeadOutput) -> str:
    """Say how much of the head's output a bias takes over, in calibration and on this image."""
    total = float(np.square(head.before).sum())
    left = float(np.square(head.after).sum()) / total if total > 0 else 0.0
    state = "Kept" if head.kept else "Pruned"
    return (
        f"{state}. Of its output energy {fmt.percent(min(head.fluctuation_ratio, 1.0), 0)} fluctuates around the mean "
        f"(R, over all of calibration); on this image {fmt.percent(left, 0)} is left after folding."
    )


def _figure(head: HeadOutput, index: int) -> Figure:
    """Draw three rows of token grids, a column a timestep bucket, on one colour scale."""
    buckets = np.unique(np.linspace(0, len(head.before) - 1, min(len(head.before), MAX_BUCKETS)).round())
    rows, columns = head.grid
    cell = PANEL / max(rows, columns)
    top_value = max(float(head.before.max()), float(head.after.max()), head.folded) or 1.0
    flat = np.full_like(head.before, head.folded)
    parts: list[str] = []
    step_x, step_y = columns * cell + 8, rows * cell + 10
    for line, (title, values) in enumerate(
        (("what it says", head.before), ("what a bias says", flat), ("what is left", head.after))
    ):
        y = 4 + line * step_y
        parts.append(svg.label(LEFT - 12, y + rows * cell / 2 + 4, title, "t ink", "end"))
        for place, bucket in enumerate(buckets.astype(int)):
            x = LEFT + place * step_x
            share = (values[bucket] / top_value).reshape(1, rows, columns)
            tip = f"bucket {bucket}: mean norm {fmt.number(float(values[bucket].mean()))}"
            parts.append(svg.rect(x, y, columns * cell, rows * cell, "h0", tip))
            parts.append(maps.cells(share[0], x, y, cell))
    foot = 4 + 3 * step_y
    for place, bucket in enumerate(buckets.astype(int)):
        middle = LEFT + place * step_x + columns * cell / 2
        parts.append(svg.label(middle, foot + 10, bucket, "t num", "middle"))
    right = LEFT + len(buckets) * step_x - 8
    parts.append(svg.label(LEFT, foot + 28, "less noise", "t"))
    parts.append(svg.label(right, foot + 28, "more noise", "t", "end"))
    alt = (
        f"Output norms of {head.module} head {head.head} by token and timestep bucket: before folding, the constant "
        f"that folding takes, and what is left; the darkest colour is {fmt.number(top_value)}."
    )
    return svg.drawing(f"folding-{index}", "".join(parts), max(right, LEFT + 150) + 4, foot + 34, alt)
