"""A head before and after folding: what it puts out at each token, what a bias can say for it, and what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.report import fmt, maps, svg
from eval.report.svg import Figure
from eval.report.tensors import HeadOutput

PANEL = 60
LEFT = 176
MAX_BUCKETS = 8
ROWS = ("what the head says", "folded into the bias", "left after folding")


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
            parts.append(maps.cells(values[place] / largest, x, y, cell))
    foot, right = 1 + 3 * step_y, LEFT + len(buckets) * step_x - 8
    for place, bucket in enumerate(buckets.tolist()):
        middle = LEFT + place * step_x + columns * cell / 2
        parts.append(svg.label(middle, foot + 9, bucket, "t num", "middle"))
    stop = max(right, LEFT + 150)
    parts += maps.bucket_ends(LEFT, stop, foot + 26)
    start = stop + 34
    parts += _key(start, largest)
    alt = (
        f"Output norms of {head.module} head {head.head} by token and timestep bucket: before folding, the constant "
        f"that folding takes, and what is left; the darkest colour is {fmt.number(largest)}."
    )
    return svg.drawing(f"folding-{index}", "".join(parts), start + 90, foot + 32, alt)


def _image(values: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return norms (T, N) as pictures (T, rows, columns); large grids as means over blocks of tokens."""
    factor = math.ceil(max(grid) / maps.MAX_SIDE)
    return maps.pooled(values.reshape(-1, *grid), factor, np.nanmean, np.nan)


def _key(x: float, largest: float) -> list[str]:
    """Return the colour scale of the norms, upright, zero at its foot."""
    parts = [svg.label(x, 12, "norm", "t ink")]
    parts += [svg.rect(x, 20 + (8 - k) * 12, 14, 12, svg.heat_class(k / 8)) for k in range(9)]
    parts.append(svg.label(x + 20, 30, fmt.number(largest), "t num"))
    parts.append(svg.label(x + 20, 127, "0", "t num"))
    return parts
