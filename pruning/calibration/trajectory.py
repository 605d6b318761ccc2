"""Means over the timesteps of every sample's trajectory, by attention site."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.step import Step
from pruning.errors import PruningError


def by_row(values: Tensor, step: Step, owner: Tensor) -> Tensor:
    """Return one value a row of the step, (B, ...), from those of an attention's batch; several get their mean."""
    batch = len(step.keys)
    zeros = values.new_zeros(batch, *values.shape[1:])
    return zeros.index_add_(0, owner.to(values.device), values) * (batch / len(owner))


class TrajectoryMeans:
    """Sums of K values a key over the calls that show a sample (and guidance branch), by site."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._counts: dict[str, dict[int, int]] = {}

    def add(self, site: str, values: Tensor, step: Step) -> None:
        """Add values (B, K, M) of the step's rows.

        Raises:
            PruningError: If a sample has another number of attention keys M than before.
        """
        found, counts = self._sums.setdefault(site, {}), self._counts.setdefault(site, {})
        keys = values.shape[-1]
        for row, key in enumerate(step.keys):
            total = found.setdefault(key, torch.zeros(values.shape[1:], dtype=torch.float64))
            if total.shape[1] != keys:
                raise PruningError(
                    f"attention {site!r}: sample {step.samples[row]} has {keys} keys now and had "
                    f"{total.shape[1]} before; calibrate at one resolution and prompt length"
                )
            total += values[row]
            counts[key] = counts.get(key, 0) + 1

    def finish(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the samples seen, int64 (R,), sorted, and their means by site, (R, K, M) float64.

        Raises:
            PruningError: If a site did not see every sample with the same number of keys.
        """
        keys = sorted({key for found in self._sums.values() for key in found})
        means = {}
        for site, found in self._sums.items():
            widths = sorted({total.shape[1] for total in found.values()})
            if len(found) < len(keys) or len(widths) > 1:
                raise PruningError(
                    f"attention {site!r} saw {len(found)} of {len(keys)} samples and {widths} keys; "
                    "calibrate at one resolution and prompt length"
                )
            means[site] = torch.stack([found[key] / self._counts[site][key] for key in keys])
        return torch.tensor(keys, dtype=torch.long), means
