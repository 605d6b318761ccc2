"""Weight magnitude: the L2 norm of everything that a unit owns; needs no data."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.importance.base import Weights, criterion, parameter
from pruning.types import CalibrationStats, ParamSlice, PrunableGroup, PruningError, slices_of


@criterion("magnitude", blocks="magnitude")
def magnitude(
    group: PrunableGroup, weights: Weights, stats: CalibrationStats, generator: torch.Generator
) -> Tensor:
    """Score a unit by the L2 norm of its produced and consumed slices, a block by that of its parameters.

    ``sqrt(sum over slices of ||slice_g||_F^2)``, biases and norm weights of the unit included.
    """
    if group.kind == "blocks":
        return _block(group, weights)
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for where in slices_of(group):
        total += _unit_sq_norms(parameter(weights, where.path, group), where, group.num_units)
    return total.sqrt()


def _block(group: PrunableGroup, weights: Weights) -> Tensor:
    owned = [weight for path, weight in weights.items() if path.startswith(group.module + ".")]
    if not owned:
        raise PruningError(f"group {group.name!r}: the weights hold no parameter below {group.module!r}")
    norms = [torch.linalg.vector_norm(weight.detach(), dtype=torch.float64).cpu() for weight in owned]
    return torch.stack(norms).norm().expand(group.num_units).clone()


def _unit_sq_norms(weight: Tensor, where: ParamSlice, units: int) -> Tensor:
    """Return the squared norm of each unit's slice, ``(units,)``.

    Rows are reduced in float32, which reads the weight in place (a float64 copy would cost its double), and
    summed over a unit in float64: relative error below 1e-5. Only float64 weights are reduced in float64.
    """
    part = weight.narrow(where.dim, where.offset, units * where.unit_size)
    others = [dim for dim in range(part.ndim) if dim != where.dim]
    dtype = torch.promote_types(part.dtype, torch.float32)
    norms = torch.linalg.vector_norm(part, dim=others, dtype=dtype) if others else part.abs()
    return norms.to("cpu", torch.float64).square().unflatten(0, (units, where.unit_size)).sum(1)
