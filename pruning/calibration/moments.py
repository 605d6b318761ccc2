"""Row statistics: weighted moments of the rows x that enter a group's consumer (SCORES.md section 3).

T timestep buckets, G units, P columns (channel-major unfolded for convolutions, matching ``weight.flatten(1)``),
u = P / G columns a unit; row weight w = w_tau, or w_tau omega^2 in a variant. Products are float32 over a chunk of
rows, sums float64. Divide by ``row_weight`` for means. `pruning.calibration.patches` has the same sums for 3 x 3
convolutions that keep the size, at a sixth of the price.
"""

from __future__ import annotations

from torch import Tensor

from pruning.calibration.base import RowStatistic, register
from pruning.calibration.patches import (
    patch_moment,
    patch_sq,
    patch_sum,
    patch_unit_moment,
    patch_weight,
    unit_blocks,
)
from pruning.types import PrunableGroup

MIN_STRIP, MAX_STRIPS = 128, 8
"""Columns of a strip of a symmetric product: narrower ones are slow, and a GPU wants few."""


def row_weight(x: Tensor, u: Tensor, group: PrunableGroup) -> Tensor:
    """Sum of w; kept as (T,)."""
    return u.double().sum()


def input_sum(x: Tensor, u: Tensor, group: PrunableGroup) -> Tensor:
    """Sum of w x; kept as (T, P)."""
    return u @ x


def input_sq(x: Tensor, u: Tensor, group: PrunableGroup) -> Tensor:
    """Sum of w x^2, (P,)."""
    return u @ x.square()


def input_unit_moment(x: Tensor, u: Tensor, group: PrunableGroup) -> Tensor:
    """Sum of w x_g x_g^T within each unit, (G, u, u)."""
    if x.shape[1] == group.num_units:  # one column a unit: thousands of 1 x 1 products otherwise
        return input_sq(x, u, group)[:, None, None]
    units = x.unflatten(1, (group.num_units, -1)).transpose(0, 1)  # (G, R, u)
    return (units * u[:, None]).transpose(1, 2) @ units


def input_moment(x: Tensor, u: Tensor, group: PrunableGroup) -> Tensor:
    """Sum of w x x^T, (P, P): strips from the diagonal to the right, mirrored, which is little more than half of it."""
    weighted, columns = x * u[:, None], x.shape[1]
    found = x.new_empty(columns, columns)
    width = max(MIN_STRIP, -(-columns // MAX_STRIPS))
    for start in range(0, columns, width):
        end = min(start + width, columns)
        found[start:end, start:] = weighted[:, start:end].T @ x[:, start:]
        found[end:, start:end] = found[start:end, end:].T
    return found


register("row_weight", RowStatistic(row_weight, by_bucket=True, of_image=patch_weight))
register("input_sum", RowStatistic(input_sum, by_bucket=True, of_image=patch_sum))
register("input_sq", RowStatistic(input_sq, of_image=patch_sq))
register(
    "input_unit_moment",
    RowStatistic(input_unit_moment, of_image=patch_unit_moment, part_of=("input_moment", unit_blocks)),
)
register("input_moment", RowStatistic(input_moment, of_image=patch_moment))
