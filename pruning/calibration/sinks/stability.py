"""How stable each key's sink is over the timesteps, from a first pass over the same inputs (SCORES.md section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.calibration.step import MAX_BRANCHES
from pruning.calibration.store import SEPARATOR, read_tensors, write_tensors
from pruning.errors import PruningError
from pruning.types import CalibrationStats

CONTENT = "a first calibration pass"


def stability(mean: Tensor, mean_square: Tensor) -> Tensor:
    """Return phi = (E s)^2 / E s^2 over timesteps, in [1/T, 1]; 0 where s was never above 0.

    1 for a sink that is equally there at every timestep, 1/T for one that is there at a single one. It means nothing
    where E s^2 is below 0.01 or so.
    """
    never = mean_square <= 0
    return torch.where(never, 0.0, mean.square() / mean_square.masked_fill(never, 1.0)).clamp(0.0, 1.0)


@dataclass
class FirstPass:
    """Sink stability by attention module, sample and key, and channel means by consumer.

    Attributes:
        keys: int64 (R,), sorted: the samples (and guidance branches) seen, as `Step.keys` numbers them.
        indicator: E_tau s by site, float32 (R, M).
        indicator_sq: E_tau s^2 by site, float32 (R, M).
        means: Mean of every channel that enters a consumer, float64 (C,), by consumer key.
        received: E_tau of what the heads of a self-attention site broadcast from each key, float32 (R, M), by site;
            see `pruning.calibration.sinks.influence`.
        meta: How it was gathered (JSON types only).
    """

    keys: Tensor
    indicator: dict[str, Tensor] = field(default_factory=dict)
    indicator_sq: dict[str, Tensor] = field(default_factory=dict)
    means: dict[str, Tensor] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, stats: CalibrationStats, meta: dict[str, Any]) -> FirstPass:
        """Take together what the observers of `statistics.first_pass` saw."""
        found = cls(torch.tensor(stats.meta["samples_seen"], dtype=torch.long))
        for place, values in stats.values.items():
            if "channel_sum" in values:
                found.means[place] = values["channel_sum"] / values["channel_weight"]
            if "sink_moments" in values:
                mean, square = values["sink_moments"].float().unbind(1)
                found.indicator[place], found.indicator_sq[place] = mean, square
                found.received[place] = values["received"].float()
        found.meta = {**meta, "sites": list(found.indicator)}  # in the order in which they run
        return found

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
        total = torch.zeros(len(rows), tokens, dtype=torch.float64)
        for later in order[order.index(site) + 1 :]:
            found = self.received.get(later)
            if found is not None and found.shape[1] == tokens:
                total += found[rows]
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
