"""Moments of the patches that a 3 x 3 convolution reads, without unfolding its input.

A patch's entry (c, a), a = (a_y, a_x) in {0, 1, 2}^2, at output position y is X_c[y + a - 1], 0 outside the image. So

    M_ab[c, c'] = sum_y X_c[y + a - 1] X_c'[y + b - 1] = sum_p X_c[p] X_c'[p + b - a],

p over all positions but those that no output reads as entry a: the last row if a_y = 0, the first if a_y = 2, and
columns likewise. But for these edges M depends on d = b - a alone: 25 products, 13 of them new since that of -d is the
transpose, in place of 81; an edge row matters only where a_y = b_y, a column where a_x = b_x, a corner where both are.
The result is that of ``unfold`` exactly, rounding aside.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from pruning.calibration.seeing import Image

TAPS = range(3)
EDGE = {0: -1, 2: 0}
"""Row or column that no output reads, by tap."""

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
    if x.shape[1] != units:  # units of several channels: blocks of the whole
        return unit_blocks(patch_moment(image), units)
    found = torch.empty(x.shape[1], 3, 3, 3, 3, dtype=x.dtype, device=x.device)
    for a, b, value in _moments(x, image.weight, lambda left, right: (left * right).sum((0, 2, 3))):
        found[:, a[0], a[1], b[0], b[1]] = value
    return found.view(x.shape[1], 9, 9)


def patch_moment(image: Image) -> Tensor:
    """Sum of w times the outer product of the patches, (9C, 9C)."""
    x, channels = image.x, image.x.shape[1]
    found = torch.empty(channels, 3, 3, channels, 3, 3, dtype=x.dtype, device=x.device)
    for a, b, value in _moments(x, image.weight, _outer):
        found[:, a[0], a[1], :, b[0], b[1]] = value
    return found.view(9 * channels, 9 * channels)


def unit_blocks(moment: Tensor, units: int) -> Tensor:
    """Return each unit's block of a moment (P, P), (G, P / G, P / G)."""
    size = len(moment) // units
    return moment.unflatten(0, (-1, size)).unflatten(2, (-1, size)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _sum(x: Tensor, u: Tensor) -> Tensor:
    """Return the sum of u times the patches of x, (9C,)."""
    total = torch.einsum("schw,s->chw", x, u)
    found = torch.empty(x.shape[1], 3, 3, dtype=x.dtype, device=x.device)
    for a_y, a_x in product(TAPS, TAPS):
        found[:, a_y, a_x] = total[:, _read(a_y), _read(a_x)].sum((1, 2))
    return found.flatten()


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Return the sum of left_c right_c' over samples and positions, (C, C)."""
    return left.transpose(0, 1).flatten(1) @ right.transpose(0, 1).flatten(1).T


def _moments(
    x: Tensor, u: Tensor, multiply: Product
) -> list[tuple[tuple[int, int], tuple[int, int], Tensor]]:
    """Return M_ab of every pair of taps."""
    weighted = x * u[:, None, None, None]
    shifts = list(product(range(-2, 3), range(-2, 3)))
    whole = {d: _shifted(weighted, x, d, multiply) for d in shifts if d >= (0, 0)}
    rows, columns, corners = {}, {}, {}
    for tap, at in EDGE.items():
        row, column = _line(at, x.shape[2]), _line(at, x.shape[3])
        for d in range(3):
            rows[tap, d] = _shifted(weighted[:, :, row], x[:, :, row], (0, d), multiply)
            columns[tap, d] = _shifted(weighted[..., column], x[..., column], (d, 0), multiply)
        for other, where in EDGE.items():
            corner = (slice(None), slice(None), row, _line(where, x.shape[3]))
            corners[tap, other] = multiply(weighted[corner], x[corner])
    found = []
    for a, b in product(product(TAPS, TAPS), product(TAPS, TAPS)):
        d = (b[0] - a[0], b[1] - a[1])
        if d < (0, 0):
            continue
        value = whole[d]
        if d[0] == 0 and a[0] in EDGE:
            value = value - _either(rows, a[0], d[1])
        if d[1] == 0 and a[1] in EDGE:
            value = value - _either(columns, a[1], d[0])
        if d == (0, 0) and a[0] in EDGE and a[1] in EDGE:
            value = value + corners[a[0], a[1]]
        found.append((a, b, value))
        if d != (0, 0):
            found.append((b, a, value.mT if value.ndim == 2 else value))
    return found


def _either(edges: dict[tuple[int, int], Tensor], tap: int, d: int) -> Tensor:
    """Return an edge's product at shift d; that of -d is the transpose."""
    value = edges[tap, abs(d)]
    return value.mT if d < 0 and value.ndim == 2 else value


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


def _line(at: int, size: int) -> slice:
    """Return the first (0) or last (-1) position of a side as a slice."""
    return slice(0, 1) if at == 0 else slice(size - 1, size)
