"""Streaming float64 sums by place and statistic, over all that is seen or sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.step import Step
from pruning.errors import PruningError

RESOLUTION = "calibrate at one resolution and prompt length"


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
        self._trajectories: dict[tuple[str, str], Trajectories] = {}

    def add(self, place: str, name: str, value: Tensor, bucket: int | None = None) -> None:
        """Add `value` to a sum, or to the part of `bucket` of a sum that keeps timestep buckets apart."""
        shape = tuple(value.shape) if value.ndim or bucket is not None else (1,)
        total = self._zeros(place, name, shape if bucket is None else (self._buckets, *shape), value)
        (total if bucket is None else total[bucket]).add_(value)

    def add_samples(self, place: str, name: str, values: Tensor, buckets: Tensor | None = None) -> None:
        """Add one value per sample, (B, ...), to a sum or, with `buckets` (B,), to the parts of their buckets.

        Raises:
            PruningError: If the values have another shape than those before.
        """
        shape = tuple(values.shape[1:])
        if buckets is None:
            self._zeros(place, name, shape or (1,), values).add_(values.double().sum(0))
            return
        total = self._zeros(place, name, (self._buckets, *shape), values)
        total.index_add_(0, buckets.to(total.device), values.to(total.device, torch.float64))

    def add_trajectories(self, place: str, name: str, values: Tensor, step: Step, row_of: Tensor) -> None:
        """Add one value per sample, (B, ..., M), to the sums of the samples themselves; see `Trajectories`."""
        self._trajectories.setdefault((place, name), Trajectories(place)).add(values, step, row_of)

    def _zeros(self, place: str, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the sum, made on the device of `like`."""
        found = self._values.get((place, name))
        if found is None:
            found = self._values[place, name] = torch.zeros(shape, dtype=torch.float64, device=like.device)
        if tuple(found.shape) != shape:
            raise PruningError(
                f"{place!r}: statistic {name!r} has shape {shape} now and had {tuple(found.shape)} before; {RESOLUTION}"
            )
        return found

    def finish(self) -> tuple[dict[str, dict[str, Tensor]], list[int]]:
        """Return all sums on the CPU, by place and name in the order of first sight, and the samples kept apart.

        Raises:
            PruningError: If not all places saw the same samples with the same sizes, where samples are kept apart.
        """
        keys = sorted({key for one in self._trajectories.values() for key in one.keys})
        found: dict[str, dict[str, Tensor]] = {}
        for (place, name), total in self._values.items():
            found.setdefault(place, {})[name] = total.cpu()
        for (place, name), one in self._trajectories.items():
            found.setdefault(place, {})[name] = one.means(keys)
        return found, keys


class Trajectories:
    """Sums of a value over the calls that show a sample (and guidance branch), at one place; on the CPU.

    Args:
        place: An attention module.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    @property
    def keys(self) -> list[int]:
        """The samples seen, as `Step.keys` numbers them."""
        return list(self._sums)

    def add(self, values: Tensor, step: Step, row_of: Tensor) -> None:
        """Add values (B, ..., M) of an attention's batch; a sample that has several entries gets their mean.

        Raises:
            PruningError: If a sample has another number of attention keys M than before.
        """
        values, batch = values.detach().cpu(), len(step.keys)
        by_row = values.new_zeros(batch, *values.shape[1:]).index_add_(0, row_of, values) * (
            batch / len(row_of)
        )
        for row, key in enumerate(step.keys):
            total = self._sums.setdefault(key, torch.zeros(values.shape[1:], dtype=torch.float64))
            if total.shape != values.shape[1:]:
                raise PruningError(
                    f"attention {self._place!r}: sample {step.samples[row]} has {values.shape[-1]} keys now and had "
                    f"{total.shape[-1]} before; {RESOLUTION}"
                )
            total += by_row[row]
            self._counts[key] = self._counts.get(key, 0) + 1

    def means(self, keys: list[int]) -> Tensor:
        """Return the mean of every sample, (R, ..., M) float64.

        Raises:
            PruningError: If a sample was not seen here, or with another number of attention keys than the others.
        """
        widths = sorted({total.shape[-1] for total in self._sums.values()})
        if len(self._sums) < len(keys) or len(widths) > 1:
            raise PruningError(
                f"attention {self._place!r} saw {len(self._sums)} of {len(keys)} samples and {widths} keys; "
                f"{RESOLUTION}"
            )
        return torch.stack([self._sums[key] / self._counts[key] for key in keys])
