"""Drift: where the sinks of a site go as the noise falls, and how many of them are still the same.

A token counts by its soft indicator s, a mean over images: one that is a sink in every second image counts half. So
sinks that sit elsewhere from image to image have a picture too, that of where they sit on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.report import fmt, svg
from eval.report.sites import Site

PANEL = 132
NEAR = 13.0  # points of the path nearer than this share one mark, and numbers of 12 px one line
FEWEST = 0.5  # sinks per image, on average, below which a timestep is said to have none
Point = tuple[float, float]


@dataclass(frozen=True)
class Drift:
    """How the sinks of a site move over T timestep buckets.

    Attributes:
        first: The noisiest bucket that has sinks; what the others are compared with.
        centroids: Row and column of the centroid of the sinks by bucket, weighted by s times attention mass, in
            tokens from the upper left corner of the grid. Empty where keys are no grid.
        overlap: Weighted Jaccard index of a bucket's sinks with those of `first`, ``sum_j min / sum_j max`` over s,
            0 (none shared) to 1 (the same). Buckets without sinks are in neither.
    """

    first: int
    centroids: dict[int, Point]
    overlap: dict[int, float]


def drift(site: Site) -> Drift | None:
    """Return how the sinks of a site move; None if no timestep has any."""
    soft = site.indicator  # s, (T, M)
    there = np.flatnonzero(soft.sum(axis=1) >= FEWEST).tolist()
    if not there:
        return None
    first = there[-1]
    shared, either = np.minimum(soft, soft[first]).sum(axis=1), np.maximum(soft, soft[first]).sum(axis=1)
    overlap = {t: float(shared[t] / either[t]) for t in there}
    mass = soft * site.key_mass
    centroids = {t: _centroid(mass[t], site.grid[1]) for t in there if mass[t].any()} if site.grid else {}
    return Drift(first, centroids, overlap)


def _centroid(mass: NDArray[np.float64], columns: int) -> Point:
    """Return the mean row and column of the cells of a grid, weighted by `mass` (M,)."""
    row, column = np.divmod(np.arange(len(mass)), columns)
    return float(np.average(row + 0.5, weights=mass)), float(np.average(column + 0.5, weights=mass))


def figure(site: Site) -> Markup | None:
    """Draw the path of the centroid over the grid and the overlap by bucket; the overlap alone for text keys."""
    if (found := drift(site)) is None:
        return None
    body, left, alt = "", 0.0, ""
    if site.grid:
        body, width = _path(site.grid, found)
        left, alt = max(width, 144.0) + 44, "Path of the sinks' centroid and "
    bars, width = _bars(found, len(site.indicator), left)
    least = min(found.overlap.values())
    alt += f"overlap of the sinks with those of bucket {found.first} at {site.module}, at least {least:.2f}."
    return svg.drawing(body + bars, left + width, 22 + PANEL + 26, alt)


def _path(grid: Sequence[int], found: Drift) -> tuple[str, float]:
    """Return the path over the token grid, from a ring at the first bucket on, and its width."""
    rows, columns = grid
    cell = PANEL / max(rows, columns)
    top, left = 22.0, 1.0
    points = {t: (left + column * cell, top + row * cell) for t, (row, column) in found.centroids.items()}
    body = svg.label(0, 12, "centroid of the sinks", "t ink")
    body += svg.rect(left, top, columns * cell, rows * cell, "h0")
    body += svg.path(list(points.values())[::-1], "way")
    middle = left + columns * cell / 2
    for members in _together(points):
        x, y = (math.fsum(points[t][axis] for t in members) / len(members) for axis in (0, 1))
        numbers, aside = _runs(members), (-9, "end") if x > middle else (9, "start")
        cls = "ring" if found.first in members else "dot p1"
        body += svg.marker(x, y, "circle", cls, f"bucket {numbers}", 5)
        body += svg.label(x + aside[0], y + 4, numbers, "t num ink halo0", aside[1])
    apart = max((math.dist(*pair) for pair in combinations(found.centroids.values(), 2)), default=0.0)
    body += svg.label(left, top + PANEL + 15, f"{apart:.1f} tokens apart at most", "t")
    return body, columns * cell + 2


def _together(points: Mapping[int, Point]) -> list[list[int]]:
    """Gather buckets whose points lie so near to each other that marks would cover each other."""
    found: dict[int, list[int]] = {}
    for bucket, point in points.items():
        near = (first for first in found if math.dist(point, points[first]) < NEAR)
        found.setdefault(next(near, bucket), []).append(bucket)
    return list(found.values())


def _runs(numbers: Sequence[int]) -> str:
    """Write rising numbers with runs joined: ``0–3, 7``."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _bars(found: Drift, count: int, left: float) -> tuple[str, float]:
    """Return the overlap as one bar for each of `count` buckets, and its width."""
    slot = min(26.0, 320 / count)
    start = left + 26
    ys = svg.Scale(0, 1, 22 + PANEL, 26)
    title = f"sinks shared with bucket {found.first}"
    body = svg.label(left, 12, title, "t ink")
    for value, text in ((0.0, "0"), (0.5, "½"), (1.0, "all")):
        body += svg.label(start - 6, ys(value) + 4, text, "t num", "end")
        body += svg.line(start, ys(value), start + count * slot, ys(value), "grid")
    every = max(1, math.ceil(count / 12))
    for bucket in range(count):
        x = start + bucket * slot + 1
        if (value := found.overlap.get(bucket)) is not None:
            top, tip = min(ys(value), ys(0) - 1.5), f"bucket {bucket}: {fmt.percent(value, 0)} shared"
            body += svg.rect(x, top, slot - 2, ys(0) - top, "fill k4", tip)
        if bucket % every == 0:
            body += svg.label(x + slot / 2 - 1, ys(0) + 15, bucket, "t num", "middle")
    return body, max(26 + count * slot, svg.text_width(title)) + 4
