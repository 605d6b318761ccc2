"""Streaming float64 sums by place and statistic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from pruning.calibration.triangle import Symmetric, Triangle
from pruning.errors import PruningError

S = TypeVar("S", Tensor, Triangle)


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
        self._values: dict[str, dict[str, Any]] = {}

    def add(
        self, place: str, names: Iterable[str], value: Tensor | Symmetric, bucket: int | None = None
    ) -> None:
        """Add `value` to each of some sums, or to the part of `bucket` of sums that keep timestep buckets apart.

        Raises:
            PruningError: If the value has another shape than those before.
        """
        if isinstance(value, Symmetric):
            zeros = partial(Triangle.zeros, value.n, value.device)
            value.add_to(*(self._sum(place, name, value.shape, zeros) for name in names))
            return
        shape = tuple(value.shape) or (1,) if bucket is None else (self._buckets, *value.shape)
        zeros = partial(torch.zeros, shape, dtype=torch.float64, device=value.device)
        for name in names:
            total = self._sum(place, name, shape, zeros)
            (total if bucket is None else total[bucket]).add_(value)

    def _sum(self, place: str, name: str, shape: tuple[int, ...], zeros: Callable[[], S]) -> S:
        found = self._values.setdefault(place, {})
        if name not in found:
            found[name] = zeros()
        if (known := tuple(found[name].shape)) != shape:
            raise PruningError(
                f"{place!r}: statistic {name!r} has shape {shape} now and had {known} before; calibrate at one "
                "resolution and prompt length"
            )
        return found[name]

    def finish(self) -> dict[str, dict[str, Tensor | Triangle]]:
        """Give up all sums, on the CPU, by place and name, in the order of first sight."""
        values, self._values = self._values, {}
        return {
            place: {name: total.cpu() for name, total in found.items()} for place, found in values.items()
        }
