"""Means over the timesteps of every sample's trajectory, by attention module and statistic."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.step import Step
from pruning.errors import PruningError


class Trajectories:
    """Sums over the calls that show a sample (and guidance branch); on the CPU."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], dict[int, Tensor]] = {}
        self._counts: dict[tuple[str, str], dict[int, int]] = {}

    def add(self, site: str, name: str, values: Tensor, step: Step, row_of: Tensor) -> None:
        """Add values (B, ..., M) of an attention's batch; a sample that has several entries gets their mean.

        Raises:
            PruningError: If a sample has another number of attention keys M than before.
        """
        values, batch = values.detach().cpu(), len(step.keys)
        by_row = values.new_zeros(batch, *values.shape[1:]).index_add_(0, row_of, values) * (
            batch / len(row_of)
        )
        sums, counts = self._sums.setdefault((site, name), {}), self._counts.setdefault((site, name), {})
        for row, key in enumerate(step.keys):
            total = sums.setdefault(key, torch.zeros(values.shape[1:], dtype=torch.float64))
            if total.shape != values.shape[1:]:
                raise PruningError(
                    f"attention {site!r}: sample {step.samples[row]} has {values.shape[-1]} keys now and had "
                    f"{total.shape[-1]} before; calibrate at one resolution and prompt length"
                )
            total += by_row[row]
            counts[key] = counts.get(key, 0) + 1

    def finish(self) -> tuple[list[int], dict[str, dict[str, Tensor]]]:
        """Return the samples seen, R of them, sorted, and their means by site and name, (R, ..., M) float64.

        Raises:
            PruningError: If a site did not see every sample with the same number of keys.
        """
        keys = sorted({key for sums in self._sums.values() for key in sums})
        found: dict[str, dict[str, Tensor]] = {}
        for (site, name), sums in self._sums.items():
            widths = sorted({total.shape[-1] for total in sums.values()})
            if len(sums) < len(keys) or len(widths) > 1:
                raise PruningError(
                    f"attention {site!r} saw {len(sums)} of {len(keys)} samples and {widths} keys; calibrate at one "
                    "resolution and prompt length"
                )
            counts = self._counts[site, name]
            found.setdefault(site, {})[name] = torch.stack([sums[key] / counts[key] for key in keys])
        return keys, found
