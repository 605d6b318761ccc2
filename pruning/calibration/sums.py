"""Streaming float64 sums by place and statistic."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.triangle import Triangle
from pruning.errors import PruningError


def summable(tensor: Tensor) -> Tensor:
    """Return `tensor`, detached, where it can be summed in float64: Apple's GPU has none, so there on the CPU."""
    tensor = tensor.detach()
    return tensor.cpu() if tensor.device.type == "mps" else tensor


class Sums:
    """Accumulates float64 sums where the data is; a first add makes the zeros.

    Args:
        buckets: T, the number of timestep buckets.
    """

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self._values: dict[str, dict[str, Tensor | Triangle]] = {}

    def add(
        self, place: str, name: str, value: Tensor, bucket: int | None = None, *, symmetric: bool = False
    ) -> None:
        """Add `value` to a sum, or to the part of `bucket` of a sum that keeps timestep buckets apart.

        Of a `symmetric` matrix one triangle is kept.

        Raises:
            PruningError: If the value has another shape than those before.
        """
        shape = tuple(value.shape) or (1,) if bucket is None else (self._buckets, *value.shape)
        found = self._values.setdefault(place, {})
        if name not in found:
            found[name] = (
                Triangle.zeros(len(value), value.device)
                if symmetric
                else torch.zeros(shape, dtype=torch.float64, device=value.device)
            )
        total = found[name]
        if tuple(total.shape) != shape:
            raise PruningError(
                f"{place!r}: statistic {name!r} has shape {shape} now and had {tuple(total.shape)} before; calibrate "
                "at one resolution and prompt length"
            )
        if isinstance(total, Triangle):
            total.add_(value)
        else:
            (total if bucket is None else total[bucket]).add_(value)

    def finish(self) -> dict[str, dict[str, Tensor | Triangle]]:
        """Give up all sums, on the CPU, by place and name, in the order of first sight."""
        values, self._values = self._values, {}
        return {
            place: {name: total.cpu() for name, total in found.items()} for place, found in values.items()
        }
