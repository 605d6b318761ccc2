"""Moments of the patches that a 3 x 3 convolution reads, without unfolding its input.

A patch's entry (c, a), a = (a_y, a_x) in {0, 1, 2}^2, at output position y is X_c[y + a - 1], 0 outside the image. So

    M_ab[c, c'] = sum_y X_c[y + a - 1] X_c'[y + b - 1] = sum_p X_c[p] X_c'[p + b - a],

p over all positions but those that no output reads as entry a: the last row if a_y = 0, the first if a_y = 2, and
columns likewise. But for these edges M depends on d = b - a alone: 25 products in place of 81, and 13 where both sides
are the same channels, since that of -d is the transpose; an edge row matters only where a_y = b_y, a column where
a_x = b_x, a corner where both are. The result is that of ``unfold`` exactly, rounding aside.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from pruning.calibration.seeing import Image
from pruning.calibration.triangle import STRIP, Symmetric
from pruning.products import product

TAPS = list(itertools.product(range(3), range(3)))
ALL, UPPER = list(itertools.product(TAPS, TAPS)), list(itertools.combinations_with_replacement(TAPS, 2))
"""Pairs of taps, and those of which the others are the transposes where both sides are the same channels."""
EDGE = {0: -1, 2: 0}
"""Row or column that no output reads, by tap."""

Tap = tuple[int, int]
Product = Callable[[Tensor, Tensor], Tensor]


def patch_weight(image: Image) -> Tensor:
    """Sum of w over samples and positions."""
    return image.weight.double().sum() * image.x.shape[2:].numel()


def patch_sum(image: Image) -> Tensor:
    """Sum of w times the patches, (9C,)."""
    return _sum(image.x, image.weight)


def patch_sq(image: Image) -> Tensor:
    """Sum of w times the squared patches, (9C,)."""
    return _sum(image.x.square(), image.weight)


def patch_unit_moment(image: Image) -> Tensor:
    """Sum of w times the outer product of each unit's part of the patches, (G, 9C / G, 9C / G)."""
    x, units = image.x, image.place.units
    if x.shape[1] == units:
        found = x.new_empty(units, 3, 3, 3, 3)
        for a, b, value in _moments(_weighted(image), x, _inner, UPPER):
            found[:, a[0], a[1], b[0], b[1]] = found[:, b[0], b[1], a[0], a[1]] = value
        return found.view(units, 9, 9)
    moment, size = patch_moment(image), 9 * x.shape[1] // units
    own = [slice(start, start + size) for start in range(0, moment.n, size)]
    return torch.stack([moment.part(unit, unit) for unit in own])


def patch_moment(image: Image) -> Symmetric:
    """Sum of w times the outer product of the patches, (9C, 9C)."""
    x, weighted, n = image.x, _weighted(image), 9 * image.x.shape[1]

    def part(rows: slice, columns: slice) -> Tensor:
        (here, of_here), (there, of_there) = _channels(rows), _channels(columns)
        left, right = weighted[:, here], x[:, there]
        found = x.new_empty(left.shape[1], 3, 3, right.shape[1], 3, 3)
        for a, b, value in _moments(left, right, _outer, UPPER if here == there else ALL):
            found[:, a[0], a[1], :, b[0], b[1]] = value
            if here == there and a != b:
                found[:, b[0], b[1], :, a[0], a[1]] = value.mT
        return found.view(9 * left.shape[1], 9 * right.shape[1])[of_here, of_there]

    return Symmetric(n, x.device, part, max(9, 2 * STRIP // n))


def _channels(columns: slice) -> tuple[slice, slice]:
    """Return the channels whose patches hold these columns, and where in them the columns are."""
    first, end = columns.start // 9, -(-columns.stop // 9)
    return slice(first, end), slice(columns.start - 9 * first, columns.stop - 9 * first)


def _weighted(image: Image) -> Tensor:
    return image.x * image.weight[:, None, None, None]


def _sum(x: Tensor, u: Tensor) -> Tensor:
    """Return the sum of u times the patches of x, (9C,)."""
    total = torch.einsum("schw,s->chw", x, u)
    found = torch.empty(x.shape[1], 3, 3, dtype=x.dtype, device=x.device)
    for a_y, a_x in TAPS:
        found[:, a_y, a_x] = total[:, _read(a_y), _read(a_x)].sum((1, 2))
    return found.flatten()


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of left_c right_c' over samples and positions, (C, C')."""
    return product(left.transpose(0, 1).flatten(1), right.transpose(0, 1).flatten(1))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of left_c right_c over samples and positions, (C,)."""
    return (left * right).sum((0, 2, 3))


def _moments(
    left: Tensor, right: Tensor, multiply: Product, pairs: Sequence[tuple[Tap, Tap]]
) -> Iterator[tuple[Tap, Tap, Tensor]]:
    """Yield M_ab of pairs of taps."""

    @cache
    def edge(tap_y: int | None, tap_x: int | None, d: Tap) -> Tensor:
        """Return the product at shift d over what no output reads as these taps; None: over all."""
        lines = (..., _line(tap_y, left.shape[2]), _line(tap_x, left.shape[3]))
        return _shifted(left[lines], right[lines], d, multiply)

    for a, b in pairs:
        d = b[0] - a[0], b[1] - a[1]
        value = edge(None, None, d)
        if d[0] == 0 and a[0] in EDGE:
            value = value - edge(a[0], None, d)
        if d[1] == 0 and a[1] in EDGE:
            value = value - edge(None, a[1], d)
        if d == (0, 0) and a[0] in EDGE and a[1] in EDGE:
            value = value + edge(a[0], a[1], d)
        yield a, b, value


def _shifted(left: Tensor, right: Tensor, d: tuple[int, int], multiply: Product) -> Tensor:
    """Return ``sum_p left[p] right[p + d]`` over the positions that both have."""
    (h, w), (d_y, d_x) = left.shape[2:], d
    here = (_overlap(h, -d_y), _overlap(w, -d_x))
    there = (_overlap(h, d_y), _overlap(w, d_x))
    return multiply(left[:, :, here[0], here[1]], right[:, :, there[0], there[1]])


def _overlap(size: int, shift: int) -> slice:
    return slice(max(0, shift), max(0, size + min(0, shift)))


def _read(tap: int) -> slice:
    """Return the positions that some output reads as this tap, along one side."""
    return {0: slice(0, -1), 1: slice(None), 2: slice(1, None)}[tap]


def _line(tap: int | None, size: int) -> slice:
    """Return the position of a side that no output reads as a tap as a slice; None: all of them."""
    if tap is None:
        return slice(None)
    return slice(0, 1) if EDGE[tap] == 0 else slice(size - 1, size)
