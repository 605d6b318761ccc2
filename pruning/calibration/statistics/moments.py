"""Moments of the rows x that enter a consumer (docs/scores.md section 3).

T timestep buckets, G units, P columns (channel-major unfolded for convolutions, matching ``weight.flatten(1)``),
u = P / G columns per unit; row weight w = w_tau, or w_tau omega^2 in a variant. Products are float32 over a chunk of
rows, sums float64. Divide by ``row_weight`` for means. `pruning.calibration.statistics.patches` has the same sums for
3 x 3 convolutions that keep the size, at a sixth of the price.
"""

from __future__ import annotations

from torch import Tensor

from pruning.calibration.observer import Observer, register
from pruning.calibration.seeing import Input, Rows
from pruning.calibration.statistics.patches import (
    patch_moment,
    patch_sq,
    patch_sum,
    patch_unit_moment,
    patch_weight,
)
from pruning.calibration.triangle import Symmetric


def row_weight(rows: Rows) -> Tensor:
    """Sum of w; kept as (T,)."""
    return rows.weight.double().sum()


def input_sum(rows: Rows) -> Tensor:
    """Sum of w x; kept as (T, P)."""
    return rows.weight @ rows.x


def input_sq(rows: Rows) -> Tensor:
    """Sum of w x^2, (P,)."""
    return rows.weight @ rows.x.square()


def input_unit_moment(rows: Rows) -> Tensor:
    """Sum of w x_g x_g^T within each unit, (G, u, u)."""
    x, units = rows.x, rows.place.units
    if x.shape[1] == units:  # one column per unit: thousands of 1 x 1 products otherwise
        return input_sq(rows)[:, None, None]
    by_unit = x.unflatten(1, (units, -1)).transpose(0, 1)  # (G, R, u)
    return (by_unit * rows.weight[:, None]).transpose(1, 2) @ by_unit


def input_moment(rows: Rows) -> Symmetric:
    """Sum of w x x^T, (P, P)."""
    return Symmetric.product(rows.x, rows.weight)


register("row_weight", Observer(Input(), row_weight, lambda at: (), by="bucket", of_image=patch_weight))
register("input_sum", Observer(Input(), input_sum, lambda at: (at.columns,), by="bucket", of_image=patch_sum))
register("input_sq", Observer(Input(), input_sq, lambda at: (at.columns,), of_image=patch_sq))
register(
    "input_moment",
    Observer(
        Input(),
        input_moment,
        lambda at: (at.columns, at.columns),
        of_image=patch_moment,
        symmetric=True,
    ),
)
register(
    "input_unit_moment",
    Observer(
        Input(),
        input_unit_moment,
        lambda at: (at.units, at.columns // at.units, at.columns // at.units),
        of_image=patch_unit_moment,
        part_of=("input_moment", lambda moment, at: moment.blocks(at.units)),
    ),
)
