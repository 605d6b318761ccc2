"""How stable each sink is over the timesteps, from a first pass over the same inputs (docs/scores.md section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pruning.calibration.step import MAX_BRANCHES
from pruning.errors import PruningError
from pruning.types import CalibrationStats


def stability(mean: Tensor, mean_square: Tensor) -> Tensor:
    """Return phi = (E s)^2 / E s^2 over timesteps, in [1/T, 1]; 0 where s was never above 0.

    1 for a sink that is equally there at every timestep, 1/T for one that is there at a single one. It means nothing
    where E s^2 is below 0.01 or so.
    """
    never = mean_square <= 0
    return torch.where(never, 0.0, mean.square() / mean_square.masked_fill(never, 1.0)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class FirstPass:
    """What a first pass saw (see `pruning.calibration.statistics.first_pass`), as the pass that follows reads it.

    Attributes:
        stats: Its sums; `meta` says how sinks were detected and which attention modules ran, in their order.
    """

    stats: CalibrationStats

    @cached_property
    def means(self) -> dict[str, Tensor]:
        """Mean of every channel that enters a consumer, (C,) float64, by consumer key; 0 where no row did."""
        places = {place: found for place, found in self.stats.values.items() if "channel_sum" in found}
        weights = {place: found["channel_weight"] for place, found in places.items()}
        return {
            place: found["channel_sum"] / weights[place].where(weights[place] > 0, 1)
            for place, found in places.items()
        }

    def stability(self, site: str, keys: Sequence[int], count: int) -> Tensor:
        """Return phi of the given samples at a site of `count` attention keys, float64 (len(keys), count).

        Raises:
            PruningError: If the site, a sample or this number of attention keys was not seen.
        """
        found = self.stats.values.get(site, {}).get("sink_moments")
        if found is None or found.shape[2] != count:
            raise PruningError(
                f"attention {site!r} has {count} keys, the first pass saw "
                f"{'none' if found is None else found.shape[2]}; run both passes over the same inputs"
            )
        return stability(*found[self._rows(keys)].unbind(1))

    def influence(self, site: str, keys: Sequence[int], tokens: int) -> Tensor:
        """Return what later self-attention over as many `tokens` broadcasts from each, float64 (len(keys), tokens).

        Raises:
            PruningError: If the first pass did not gather it, or a sample was not seen.
        """
        order = self.stats.meta["sites"]
        if site not in order:
            raise PruningError(
                f"the first pass did not gather what attention after {site!r} broadcasts; run the first pass again"
            )
        rows = self._rows(keys)
        total = torch.zeros(len(rows), tokens, dtype=torch.float64)
        for later in order[order.index(site) + 1 :]:
            found = self.stats.get(later, "received")
            if found.shape[1] == tokens:
                total += found[rows]
        return total

    def _rows(self, keys: Sequence[int]) -> Tensor:
        place = {key: row for row, key in enumerate(self.stats.meta["samples_seen"])}
        for key in keys:
            if key not in place:
                raise PruningError(
                    f"sample {key // MAX_BRANCHES} was not seen by the first pass; run both passes over the same inputs"
                )
        return torch.tensor([place[key] for key in keys])
