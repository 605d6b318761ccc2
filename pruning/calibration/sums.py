"""Streaming float64 sums by group and statistic."""

from __future__ import annotations

import torch
from torch import Tensor

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
        self._values: dict[tuple[str, str], Tensor] = {}

    def add(self, group: str, name: str, value: Tensor, bucket: int | None = None) -> None:
        """Add `value` to a sum, or to the part of `bucket` of a sum that keeps timestep buckets apart."""
        shape = tuple(value.shape) if value.ndim or bucket is not None else (1,)
        total = self._zeros(group, name, shape if bucket is None else (self._buckets, *shape), value)
        (total if bucket is None else total[bucket]).add_(value)

    def add_samples(self, group: str, name: str, values: Tensor, buckets: Tensor | None = None) -> None:
        """Add one value a sample, (B, ...), to a sum or, with `buckets` (B,), to the parts of their buckets.

        Raises:
            PruningError: If the values have another shape than those before.
        """
        shape = tuple(values.shape[1:])
        if buckets is None:
            self._zeros(group, name, shape or (1,), values).add_(values.double().sum(0))
            return
        total = self._zeros(group, name, (self._buckets, *shape), values)
        total.index_add_(0, buckets.to(total.device), values.to(total.device, torch.float64))

    def _zeros(self, group: str, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the sum, made on the device of `like`."""
        found = self._values.get((group, name))
        if found is None:
            found = self._values[group, name] = torch.zeros(shape, dtype=torch.float64, device=like.device)
        if tuple(found.shape) != shape:
            raise PruningError(
                f"group {group!r}: statistic {name!r} has shape {shape} now and had {tuple(found.shape)} before; "
                "calibrate at one resolution and prompt length"
            )
        return found

    def items(self) -> list[tuple[str, str, Tensor]]:
        """Return (group, name, sum on the CPU) for every sum."""
        return [(group, name, value.cpu()) for (group, name), value in self._values.items()]
