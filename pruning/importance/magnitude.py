"""Weight magnitude: the L2 norm of everything that a unit owns; needs no data."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.importance.base import criterion
from pruning.importance.moments import Weights, parameter
from pruning.types import CalibrationStats, ParamSlice, PrunableGroup, inside, slices_of

ACCUMULATOR = 2**17  # elements; fits the cache of one core


@criterion("magnitude", blocks="magnitude", experts="magnitude", whole=True)
def magnitude(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by the L2 norm of its produced and consumed slices, and of the parameters of modules that it is.

    ``sqrt(sum over slices of ||slice_g||_F^2)``, biases and norm weights of the unit included.
    """
    if group.kind == "blocks":
        norms = [_sq_norm(group, weights, path) for path in group.paths]
        return torch.stack(norms).sum().sqrt().expand(group.num_units).clone()
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for where in slices_of(group):
        total += _unit_sq_norms(parameter(weights, where.path, group), where, group.num_units)
    for items in group.lists:
        total += torch.stack([_sq_norm(group, weights, f"{items}.{k}") for k in range(group.num_units)])
    return total.sqrt()


def _sq_norm(group: PrunableGroup, weights: Weights, path: str) -> Tensor:
    """Return the squared norm of all parameters of a module, float64."""
    owned = [weight for name, weight in weights.items() if inside(name, path)]
    if not owned:
        raise PruningError(f"group {group.name!r}: the weights hold no parameter below {path!r}")
    norms = [torch.linalg.vector_norm(weight.detach(), dtype=torch.float64).cpu() for weight in owned]
    return torch.stack(norms).square().sum()


def _unit_sq_norms(weight: Tensor, where: ParamSlice, units: int) -> Tensor:
    """Return the squared norm of each unit's slice, ``(units,)`` float64.

    Squares are summed in float32 (float64 weights in float64), reading the weight in place, and over a unit in
    float64: relative error below 1e-5.
    """
    part = weight.narrow(where.dim, where.offset, units * where.unit_size)
    dtype = torch.promote_types(part.dtype, torch.float32)
    if where.dim == 0:
        squares = _row_squares(part, dtype).cpu()
    else:
        squares = _column_squares(part.transpose(1, where.dim).flatten(1), dtype).cpu()
    return squares.unflatten(0, (units, -1)).sum(1)


def _row_squares(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums of squares of the rows of ``(R, ...)``, ``(R,)`` float64; narrow types are widened in blocks."""
    if part.ndim == 1:
        return part.double().square()
    norms = torch.empty(len(part), dtype=dtype, device=part.device)
    others = list(range(1, part.ndim))
    if part.dtype == dtype:
        torch.linalg.vector_norm(part, dim=others, out=norms)
        return norms.double().square()
    rows = max(1, ACCUMULATOR // part[0].numel())
    wide = torch.empty(min(rows, len(part)), *part.shape[1:], dtype=dtype, device=part.device)
    for block, found in zip(part.split(rows), norms.split(rows), strict=True):
        torch.linalg.vector_norm(wide[: len(block)].copy_(block), dim=others, out=found)
    return norms.double().square()


def _column_squares(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums of squares of the columns of ``(R, C)``, ``(C,)`` float64.

    A reduction along rows strides through memory; adding row blocks up in a small accumulator streams instead
    (measured: 9x faster on a 1280 x 11520 weight).
    """
    rows = max(1, min(len(matrix), ACCUMULATOR // matrix.shape[1]))
    sums = torch.zeros(rows, matrix.shape[1], dtype=dtype, device=matrix.device)
    wide = torch.empty_like(sums)
    for block in matrix.split(rows):
        block = block if block.dtype == dtype else wide[: len(block)].copy_(block)
        sums[: len(block)].addcmul_(block, block)
    return sums.sum(0, dtype=torch.float64)
