"""The first of two passes over the same inputs: how stable each key's sink is, and channel means.

What is weighted with omega, or centred with means, needs them before the rows come by (SCORES.md section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.calibration.consumer import Consumer
from pruning.calibration.indicator import MIN_ENERGY, stability
from pruning.calibration.reading import Reading
from pruning.calibration.step import MAX_BRANCHES, Step
from pruning.calibration.store import SEPARATOR, read_tensors, write_tensors
from pruning.calibration.sums import Sums, summable
from pruning.types import PruningError

CONTENT = "a first calibration pass"


@dataclass
class FirstPass:
    """Sink stability by site, sample and key, and channel means by group.

    Attributes:
        keys: int64 (R,), sorted: the samples (and guidance branches) seen, as `Step.keys` numbers them.
        indicator: E_tau s by site, float32 (R, M).
        indicator_sq: E_tau s^2 by site, float32 (R, M).
        means: Mean of every input channel of a group's consumer, float64 (C,), by group name.
        meta: How it was gathered (JSON types only).
    """

    keys: Tensor
    indicator: dict[str, Tensor] = field(default_factory=dict)
    indicator_sq: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def stability(self, site: str, keys: Sequence[int], count: int) -> Tensor:
        """Return phi of the given samples at a site of `count` attention keys, float64 (len(keys), count).

        Raises:
            PruningError: If the site, a sample or this number of attention keys was not seen.
        """
        if site not in self.indicator or self.indicator[site].shape[1] != count:
            seen = self.indicator[site].shape[1] if site in self.indicator else "none"
            raise PruningError(
                f"attention {site!r} has {count} keys, the first pass saw {seen}; run both passes over the same inputs"
            )
        wanted = torch.tensor(list(keys), dtype=torch.long)
        rows = torch.searchsorted(self.keys, wanted).clamp_max(max(len(self.keys) - 1, 0))
        missing = self.keys[rows] != wanted if len(self.keys) else torch.ones(len(wanted), dtype=torch.bool)
        if bool(missing.any()):
            raise PruningError(
                f"sample {int(wanted[missing][0]) // MAX_BRANCHES} was not seen by the first pass; "
                "run both passes over the same inputs"
            )
        return stability(self.indicator[site][rows].double(), self.indicator_sq[site][rows].double())

    def reported_stability(self, site: str) -> Tensor:
        """Return phi of every sample and key, (R, M) float64, NaN where E s^2 is too small for it to mean anything."""
        energy = self.indicator_sq[site].double()
        return torch.where(energy < MIN_ENERGY, torch.nan, stability(self.indicator[site].double(), energy))

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file."""
        tensors = {"keys": self.keys}
        for kind in ("indicator", "indicator_sq", "means"):
            tensors |= {f"{kind}{SEPARATOR}{name}": value for name, value in getattr(self, kind).items()}
        write_tensors(path, CONTENT, tensors, self.meta)

    @classmethod
    def load(cls, path: str | Path) -> FirstPass:
        """Read a file written by `save`."""
        tensors, meta = read_tensors(path, CONTENT)
        found = cls(tensors.pop("keys"), meta=meta)
        for key, value in tensors.items():
            kind, _, name = key.partition(SEPARATOR)
            getattr(found, kind)[name] = value
        return found


class StabilitySums:
    """Sums of s and s^2 over timesteps, by site and sample (and guidance branch)."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, Tensor]] = {}

    def add(self, reading: Reading, step: Step, owner: Tensor) -> None:
        """Add one attention call; a sample that owns several rows of the batch gets their mean."""
        s = reading.indicator.cpu()  # (B, M)
        batch = len(step.keys)
        mean = s.new_zeros(batch, s.shape[1]).index_add_(0, owner, s) * (batch / len(owner))
        both = torch.stack([mean, mean.square()], dim=1)  # (rows of the step, 2, M)
        found = self._sums.setdefault(reading.call.path, {})
        for row, key in enumerate(step.keys):
            total = found.setdefault(key, torch.zeros(3, s.shape[1], dtype=torch.float64))
            if total.shape[1] != s.shape[1]:
                raise PruningError(
                    f"attention {reading.call.path!r}: sample {step.samples[row]} has {s.shape[1]} keys now and had "
                    f"{total.shape[1]} before; calibrate at one resolution and prompt length"
                )
            total[:2] += both[row]
            total[2] += 1

    def finish(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return keys (R,) and E s and E s^2 by site, (R, M) each."""
        keys = sorted({key for found in self._sums.values() for key in found})
        mean, square = {}, {}
        for site, found in self._sums.items():
            absent = [key for key in keys if key not in found]
            widths = {total.shape[1] for total in found.values()}
            if absent or len(widths) > 1:
                raise PruningError(
                    f"attention {site!r} saw {len(found)} of {len(keys)} samples and {sorted(widths)} keys; "
                    "calibrate at one resolution and prompt length"
                )
            rows = torch.stack([found[key][:2] / found[key][2] for key in keys])  # (R, 2, M)
            mean[site], square[site] = rows[:, 0].float(), rows[:, 1].float()
        return torch.tensor(keys, dtype=torch.long), mean, square


class ChannelMeans:
    """Means of the input channels of consumers over all rows and timesteps, by w_tau."""

    def __init__(self) -> None:
        self._sums = Sums(1)

    def add(self, consumer: Consumer, x: Tensor, step: Step, owner: Tensor) -> None:
        """Add one input of a consumer."""
        tokens = consumer.tokens(summable(x)).float()  # (S, N, C)
        weight = step.weights[owner].to(tokens.device)
        name = consumer.group.name
        self._sums.add(name, "sum", weight @ tokens.sum(1, dtype=torch.float64))
        self._sums.add(name, "weight", weight.sum() * tokens.shape[1])

    def finish(self) -> dict[str, Tensor]:
        """Return the means, (C,) float64, by group name."""
        found: dict[str, dict[str, Tensor]] = {}
        for group, name, value in self._sums.items():
            found.setdefault(group, {})[name] = value
        return {group: sums["sum"] / sums["weight"] for group, sums in found.items()}
