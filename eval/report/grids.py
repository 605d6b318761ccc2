"""Grids of tokens and keys: cells by colour, large grids reduced to what a page can show."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.report import svg

MAX_SIDE = 32  # larger token grids are reduced to at most this side


def reduction(grid: list[int], most: int = MAX_SIDE) -> int:
    """Return how many tokens stand side by side in one cell of a drawn grid of at most `most` cells a side."""
    return math.ceil(max(grid) / most)


def pooled(
    values: NDArray[Any],
    grid: list[int],
    reduce: Callable[..., NDArray[Any]] = np.max,
    fill: float = 0.0,
    most: int = MAX_SIDE,
) -> NDArray[Any]:
    """Return values by token ``(T, N)`` as drawn grids ``(T, rows, columns)``, each cell a token or a block of them.

    Args:
        values: By timestep bucket and token.
        grid: Rows and columns of the tokens.
        reduce: A NumPy reduction over the tokens of a cell.
        fill: What stands beyond the edges of the last blocks.
        most: Cells a side.
    """
    factor, (rows, columns) = reduction(grid, most), grid
    pad = ((0, 0), (0, -rows % factor), (0, -columns % factor))
    padded = np.pad(values.reshape(-1, rows, columns), pad, constant_values=fill)
    shape = (len(padded), padded.shape[1] // factor, factor, padded.shape[2] // factor, factor)
    return reduce(padded.reshape(shape), axis=(2, 4))


def panel(share: NDArray[np.float64], x: float, y: float, cell: float, tip: str) -> str:
    """Draw one grid, ``(rows, columns)`` in [0, 1], by colour."""
    rows, columns = share.shape
    return svg.rect(x, y, columns * cell, rows * cell, "h0", tip) + cells(share, x, y, cell)


def cells(share: NDArray[np.float64], x: float, y: float, cell: float) -> str:
    """Return the cells above the lowest colour, runs of one colour in a row joined, one path per colour."""
    drawn: dict[str, list[str]] = {}
    for row, values in enumerate(share):
        column = 0
        for name, run in groupby(map(svg.heat_class, values.tolist())):
            width = len(list(run))
            if name != "h0":
                drawn.setdefault(name, []).append(
                    f"M{x + column * cell:.4g} {y + row * cell:.4g}h{width * cell:.4g}v{cell:.4g}h{-width * cell:.4g}z"
                )
            column += width
    return "".join(f'<path class="{name}" d="{"".join(steps)}"/>' for name, steps in sorted(drawn.items()))


def bucket_ends(start: float, stop: float, y: float) -> str:
    """Return the words at both ends of an axis of timestep buckets."""
    return svg.label(start, y, "less noise", "t") + svg.label(stop, y, "more noise", "t", "end")
