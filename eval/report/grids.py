"""Grids of tokens and keys: cells by colour, large grids reduced to what a page can show."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eval.report import svg

MAX_SIDE = 32  # larger token grids are reduced to at most this side


def pooled(
    values: NDArray[np.float64],
    factor: int,
    reduce: Callable[..., NDArray[np.float64]] = np.max,
    fill: float = 0.0,
) -> NDArray[np.float64]:
    """Reduce blocks of ``factor x factor`` cells of ``(T, rows, columns)``, by default to their maximum.

    Args:
        values: What is pooled.
        factor: Side of a block.
        reduce: A NumPy reduction.
        fill: What stands beyond the edges of the last blocks.
    """
    if factor == 1:
        return values
    _, rows, columns = values.shape
    pad = ((0, 0), (0, -rows % factor), (0, -columns % factor))
    values = np.pad(values, pad, constant_values=fill)
    shape = (len(values), values.shape[1] // factor, factor, values.shape[2] // factor, factor)
    return reduce(values.reshape(shape), axis=(2, 4))


def cells(share: NDArray[np.float64], x: float, y: float, cell: float) -> str:
    """Return the cells above the lowest colour, runs of one colour in a row joined, one path per colour."""
    drawn: dict[str, list[str]] = {}
    for row, values in enumerate(share):
        names = ["nodata" if math.isnan(v) else svg.heat_class(float(v)) for v in values]
        start = 0
        for end in range(1, len(names) + 1):
            if end == len(names) or names[end] != names[start]:
                if names[start] != "h0":
                    drawn.setdefault(names[start], []).append(
                        f"M{x + start * cell:.4g} {y + row * cell:.4g}h{(end - start) * cell:.4g}v{cell:.4g}"
                        f"h{-(end - start) * cell:.4g}z"
                    )
                start = end
    return "".join(f'<path class="{name}" d="{"".join(steps)}"/>' for name, steps in sorted(drawn.items()))


def bucket_ends(start: float, stop: float, y: float) -> list[str]:
    """Return the words at both ends of an axis of timestep buckets."""
    return [svg.label(start, y, "less noise", "t"), svg.label(stop, y, "more noise", "t", "end")]
