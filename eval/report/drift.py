"""Drift: where the sinks of a site go as the noise falls, and how many of them are still the same.

A token counts by its soft indicator s, a mean over images: one that is a sink in every second image counts half. So
sinks that sit elsewhere from image to image have a picture too, that of where they sit on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from eval.report import fmt, svg
from eval.report.sites import Site
from eval.report.svg import Scale

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
            tokens from the upper left corner of the grid; None without sinks. Empty where keys are no grid.
        overlap: Weighted Jaccard index of a bucket's sinks with those of `first`, ``sum_j min / sum_j max`` over s,
            0 (none shared) to 1 (the same); None where the bucket has none.
    """

    first: int
    centroids: list[Point | None]
    overlap: list[float | None]


def drift(site: Site) -> Drift | None:
    """Return how the sinks of a site move; None if no timestep has any."""
    weight = _weight(site)
    there = weight.sum(axis=1) >= FEWEST
    if not there.any():
        return None
    first = int(np.flatnonzero(there)[-1])
    overlap = [
        float(np.minimum(row, weight[first]).sum() / np.maximum(row, weight[first]).sum()) if any_ else None
        for row, any_ in zip(weight, there, strict=True)
    ]
    mass = weight * np.nan_to_num(site.key_mass)
    places = (
        [_centroid(row, site.grid[1]) if any_ else None for row, any_ in zip(mass, there, strict=True)]
        if site.grid
        else []
    )
    return Drift(first, places, overlap)


def _weight(site: Site) -> NDArray[np.float64]:
    """Return how much of a sink each key is, ``(T, M)`` in [0, 1]."""
    return site.sinks.astype(float) if site.indicator is None else np.nan_to_num(site.indicator)


def _centroid(mass: NDArray[np.float64], columns: int) -> Point | None:
    """Return the mean row and column of the cells of a grid, weighted by `mass` (M,)."""
    if not mass.any():
        return None
    rows, across = np.divmod(np.arange(len(mass)), columns)
    row, column = (float((mass * (where + 0.5)).sum() / mass.sum()) for where in (rows, across))
    return row, column


def figure(site: Site) -> Markup | None:
    """Draw the path of the centroid over the grid and the overlap by bucket; the overlap alone for text keys."""
    found = drift(site)
    if found is None:
        return None
    body, left, alt = "", 0.0, ""
    if site.grid:
        body, width = _path(site.grid, found)
        left, alt = max(width, 144.0) + 44, "Path of the sinks' centroid and "
    bars, width = _bars(found, left)
    least = min(value for value in found.overlap if value is not None)
    alt += f"overlap of the sinks with those of bucket {found.first} at {site.module}, at least {least:.2f}."
    return svg.drawing(body + bars, left + width, 22 + PANEL + 26, alt)


def _path(grid: tuple[int, int], found: Drift) -> tuple[str, float]:
    """Return the path over the token grid, from a ring at the first bucket on, and its width."""
    rows, columns = grid
    cell = PANEL / max(rows, columns)
    top, left = 22.0, 1.0
    points = [
        None if place is None else (left + place[1] * cell, top + place[0] * cell)
        for place in found.centroids
    ]
    parts = [svg.label(0, 12, "centroid of the sinks", "t ink")]
    parts.append(svg.rect(left, top, columns * cell, rows * cell, "h0"))
    parts.append(svg.path([point for point in reversed(points) if point], "way"))
    middle = left + columns * cell / 2
    for members in _together(points):
        x, y = (math.fsum(points[k][axis] for k in members) / len(members) for axis in (0, 1))  # type: ignore[index]
        cls = "ring" if found.first in members else "dot p1"
        numbers = _runs(members)
        parts.append(svg.marker(x, y, "circle", cls, f"bucket {numbers}", 5))
        side = "end" if x > middle else "start"
        parts.append(svg.label(x + (-9 if x > middle else 9), y + 4, numbers, "t num ink halo0", side))
    parts.append(svg.label(left, top + PANEL + 15, _farthest(found.centroids), "t"))
    return "".join(parts), columns * cell + 2


def _farthest(centroids: Sequence[Point | None]) -> str:
    """Say how far apart any two centroids are at most."""
    known = [place for place in centroids if place is not None]
    apart = max((math.dist(one, other) for one in known for other in known), default=0.0)
    return f"{apart:.1f} tokens apart at most"


def _together(points: Sequence[Point | None]) -> list[list[int]]:
    """Gather buckets whose points lie so near to each other that marks would cover each other."""
    found: list[list[int]] = []
    for bucket, point in enumerate(points):
        if point is None:
            continue
        for members in found:
            anchor = points[members[0]]
            if anchor is not None and math.dist(point, anchor) < NEAR:
                members.append(bucket)
                break
        else:
            found.append([bucket])
    return found


def _runs(numbers: Sequence[int]) -> str:
    """Write rising numbers with runs joined: ``0–3, 7``."""
    runs = [
        [number for _, number in members]
        for _, members in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _bars(found: Drift, left: float) -> tuple[str, float]:
    """Return the overlap as one bar per bucket, and its width."""
    count = len(found.overlap)
    slot = min(26.0, 320 / count)
    start = left + 26
    ys = Scale(0, 1, 22 + PANEL, 26)
    title = f"sinks shared with bucket {found.first}"
    parts = [svg.label(left, 12, title, "t ink")]
    for value, text in ((0.0, "0"), (0.5, "½"), (1.0, "all")):
        parts.append(svg.label(start - 6, ys(value) + 4, text, "t num", "end"))
        parts.append(svg.line(start, ys(value), start + count * slot, ys(value), "grid"))
    every = max(1, math.ceil(count / 12))
    for bucket, value in enumerate(found.overlap):
        x = start + bucket * slot + 1
        tip = "no sinks" if value is None else f"{fmt.percent(value, 0)} shared"
        if value is not None:
            top = min(ys(value), ys(0) - 1.5)
            parts.append(svg.rect(x, top, slot - 2, ys(0) - top, "fill k4", f"bucket {bucket}: {tip}"))
        if bucket % every == 0:
            parts.append(svg.label(x + slot / 2 - 1, ys(0) + 15, bucket, "t num", "middle"))
    return "".join(parts), max(26 + count * slot, svg.text_width(title)) + 4
