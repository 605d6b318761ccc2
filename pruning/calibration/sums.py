"""Streaming float64 sums by group and statistic."""

from __future__ import annotations

import torch
from torch import Tensor


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
        """Add one value a sample, (B, ...), to a sum or, with `buckets` (B,), to the parts of their buckets."""
        shape = tuple(values.shape[1:])
        if buckets is None:
            self._zeros(group, name, shape or (1,), values).add_(values.double().sum(0))
            return
        total = self._zeros(group, name, (self._buckets, *shape), values)
        where = buckets.to(total.device)
        total.index_add_(0, where, values.to(total.device, torch.float64))

    def _zeros(self, group: str, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the sum, made on the device of `like` if it has float64."""
        if (group, name) not in self._values:
            device = torch.device("cpu") if like.device.type == "mps" else like.device
            self._values[group, name] = torch.zeros(shape, dtype=torch.float64, device=device)
        return self._values[group, name]

    def expected_shape(self, group: str, name: str) -> tuple[int, ...] | None:
        """Return the shape of a sum, None before its first add."""
        found = self._values.get((group, name))
        return None if found is None else tuple(found.shape)

    def items(self) -> list[tuple[str, str, Tensor]]:
        """Return (group, name, sum on the CPU) for every sum."""
        return [(group, name, value.cpu()) for (group, name), value in self._values.items()]
