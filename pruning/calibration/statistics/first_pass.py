"""What a first pass sees: channel means, and what attention shows of each sample; not for asking by name.

What is weighted by the sinks, or centred with means, needs these before the rows come by (docs/scores.md section 2).

- ``channel_sum`` (C,), ``channel_weight`` (1,): sums of w x over the channels that enter a consumer, and of w.
- ``sink_moments`` (R, 2, M): E_tau s and E_tau s^2 of every sample.
- ``received`` (R, M): E_tau of what later tokens receive from each; see `pruning.calibration.sinks.influence`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.calibration.attention.reading import Reading
from pruning.calibration.observer import Observer
from pruning.calibration.rows import consumers_of
from pruning.calibration.seeing import Attention, Input, Rows, Site
from pruning.calibration.sinks.influence import head_gain, received
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class WeightingAttention(Attention):
    """Sees the attention modules whose sinks weight rows, whatever group they belong to."""

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[Site]:
        """Return the modules that weight the rows of a consumer of `groups`."""
        paths = {one.site for one in consumers_of(model, groups) if one.site is not None}
        return [Site.of(model, path) for path in sorted(paths)]


def first_observers(model: nn.Module, groups: Sequence[PrunableGroup], *, sinks: bool) -> dict[str, Observer]:
    """Return what a first pass sees: channel sums, and, with `sinks`, what attention shows of each sample."""
    channels = Input(unfolded=False)
    found = {
        "channel_sum": Observer(channels, channel_sum, lambda at: (at.channels,)),
        "channel_weight": Observer(channels, lambda rows: rows.weight.double().sum(), lambda at: (1,)),
    }
    if sinks:
        sees = WeightingAttention()
        gains = {site.key: head_gain(model.get_submodule(site.key)) for site in sees.places(model, groups)}
        found["sink_moments"] = Observer(sees, sink_moments, lambda at: (2, at.keys), by="sample")
        found["received"] = Observer(sees, receives(gains), lambda at: (at.keys,), by="sample")
    return found


def channel_sum(rows: Rows) -> Tensor:
    """Sum of w x, (C,) float64."""
    return (rows.x * rows.weight[:, None]).sum(0, dtype=torch.float64)


def sink_moments(reading: Reading) -> Tensor:
    """Indicator s and s^2, (B, 2, M)."""
    return torch.stack([reading.indicator, reading.indicator.square()], dim=1)


def receives(gains: Mapping[str, Tensor | None]) -> Callable[[Reading], Tensor]:
    """Return a measure of what is received from each token, (B, M), given the gains of each module's heads.

    It is nothing where the gains are not known, and in cross-attention, whose keys are other tokens than the rows.
    """

    def measure(reading: Reading) -> Tensor:
        gain = gains[reading.call.path]
        if gain is None or reading.call.cross:
            return torch.zeros_like(reading.indicator)
        return received(reading, gain)

    return measure
