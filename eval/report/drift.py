"""Drift: where the sinks of a site go as the noise falls, and how many of them are still the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from eval.report import fmt, svg
from eval.report.svg import Figure, Scale
from eval.report.tensors import Site

PANEL = 132
NEAR = 11.0  # points of the path nearer than this share one mark
Point = tuple[float, float]


@dataclass(frozen=True)
class Drift:
    """How the sinks of a site move over T timestep buckets.

    Attributes:
        first: The noisiest bucket that has sinks; what the others are compared with.
        centroids: Row and column of the mass-weighted centroid of the sinks by bucket, in tokens from the upper left
            corner of the grid; None without sinks. Empty where keys are no grid.
        overlap: Jaccard index of a bucket's sinks with those of `first`, 0 (none shared) to 1 (the same); None where
            the bucket has none.
    """

    first: int
    centroids: list[Point | None]
    overlap: list[float | None]


def drift(site: Site) -> Drift | None:
    """Return how the sinks of a site move; None if no key is a sink on average."""
    sinks = site.sinks
    buckets = np.flatnonzero(sinks.any(axis=1))
    if not len(buckets):
        return None
    first = int(buckets[-1])
    overlap = [
        float((row & sinks[first]).sum() / (row | sinks[first]).sum()) if row.any() else None for row in sinks
    ]
    return Drift(first, [_centroid(site, t) for t in range(len(sinks))] if site.grid else [], overlap)


def _centroid(site: Site, bucket: int) -> Point | None:
    """Return the mean row and column of the cells that are sinks, weighted by their mass."""
    assert site.grid is not None
    mass = np.where(site.sinks[bucket], np.nan_to_num(site.key_mass[bucket]), 0.0)
    if not mass.any():
        return None
    rows, columns = np.divmod(np.arange(len(mass)), site.grid[1])
    row, column = (float((mass * (where + 0.5)).sum() / mass.sum()) for where in (rows, columns))
    return row, column


def figure(site: Site, index: int) -> Figure | None:
    """Draw the path of the centroid over the grid and the overlap by bucket; the overlap alone for text keys."""
    found = drift(site)
    if found is None:
        return None
    body, left, alt = "", 0.0, ""
    if site.grid:
        body, width = _path(site.grid, found)
        left, alt = (
            max(width, svg.text_width("centroid of the sinks")) + 44,
            "Path of the sinks' centroid and ",
        )
    bars, width = _bars(found, left)
    least = min(value for value in found.overlap if value is not None)
    alt += f"overlap of the sinks with those of bucket {found.first} at {site.module}, at least {least:.2f}."
    return svg.drawing(f"sinks-{index}-drift", body + bars, left + width, 22 + PANEL + 26, alt)


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
    return "".join(parts), columns * cell + 2


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
    """Return the overlap as one bar a bucket, and its width."""
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
