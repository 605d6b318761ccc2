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
from pruning.calibration.trajectory import TrajectoryMeans, by_row
from pruning.errors import PruningError

CONTENT = "a first calibration pass"


@dataclass
class FirstPass:
    """Sink stability by site, sample and key, and channel means by group.

    Attributes:
        keys: int64 (R,), sorted: the samples (and guidance branches) seen, as `Step.keys` numbers them.
        indicator: E_tau s by site, float32 (R, M).
        indicator_sq: E_tau s^2 by site, float32 (R, M).
        means: Mean of every input channel of a group's consumer, float64 (C,), by group name.
        received: E_tau of what the heads of a self-attention site broadcast from each key, float32 (R, M), by site;
            see `pruning.calibration.influence`.
        meta: How it was gathered (JSON types only).
    """

    keys: Tensor
    indicator: dict[str, Tensor] = field(default_factory=dict)
    indicator_sq: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
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
        rows = self._rows(keys)
        return stability(self.indicator[site][rows].double(), self.indicator_sq[site][rows].double())

    def influence(self, site: str, keys: Sequence[int], tokens: int) -> Tensor:
        """Return what later self-attention over as many `tokens` broadcasts from each, float64 (len(keys), tokens).

        Raises:
            PruningError: If the first pass did not gather it, or a sample was not seen.
        """
        order = self.meta.get("sites", [])
        if site not in order:
            raise PruningError(
                f"the first pass did not gather what attention after {site!r} broadcasts; run the first pass again"
            )
        rows = self._rows(keys)
        later = [self.received[path] for path in order[order.index(site) + 1 :] if path in self.received]
        total = torch.zeros(len(rows), tokens, dtype=torch.float64)
        for received in later:
            if received.shape[1] == tokens:
                total += received[rows]
        return total

    def _rows(self, keys: Sequence[int]) -> Tensor:
        wanted = torch.tensor(list(keys), dtype=torch.long)
        rows = torch.searchsorted(self.keys, wanted).clamp_max(max(len(self.keys) - 1, 0))
        missing = self.keys[rows] != wanted if len(self.keys) else torch.ones(len(wanted), dtype=torch.bool)
        if bool(missing.any()):
            raise PruningError(
                f"sample {int(wanted[missing][0]) // MAX_BRANCHES} was not seen by the first pass; "
                "run both passes over the same inputs"
            )
        return rows

    def reported_stability(self, site: str) -> Tensor:
        """Return phi of every sample and key, (R, M) float64, NaN where E s^2 is too small for it to mean anything."""
        energy = self.indicator_sq[site].double()
        return torch.where(energy < MIN_ENERGY, torch.nan, stability(self.indicator[site].double(), energy))

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file."""
        tensors = {"keys": self.keys}
        for kind in ("indicator", "indicator_sq", "means", "received"):
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
        self._means = TrajectoryMeans()

    def add(self, reading: Reading, step: Step, owner: Tensor) -> None:
        """Add one attention call; a sample that owns several rows of the batch gets their mean."""
        s = by_row(reading.indicator.cpu(), step, owner)  # (rows of the step, M)
        self._means.add(reading.call.path, torch.stack([s, s.square()], dim=1), step)

    def finish(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return keys (R,) and E s and E s^2 by site, (R, M) each."""
        keys, means = self._means.finish()
        mean, square = ({site: both[:, k].float() for site, both in means.items()} for k in (0, 1))
        return keys, mean, square


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
