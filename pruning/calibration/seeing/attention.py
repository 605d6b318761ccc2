"""Seeing the calls of attention modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.calibration.attention.reading import Reading
from pruning.calibration.attention.sites import measured_sites
from pruning.calibration.observer import Bench, Observer, Sight
from pruning.calibration.step import Step
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class Site:
    """An attention module.

    Attributes:
        key: Its path.
        heads: H.
        keys: M; 0 as long as the model has not run.
    """

    key: str
    heads: int
    keys: int = 0


@dataclass(frozen=True)
class Attention(Sight):
    """Sees the `Reading` of each call; measures give one value per sample of its batch, (B, ...)."""

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[Site]:
        """Return the attention modules of the groups."""
        return [Site(path, heads_of(model, path)) for path in measured_sites(model, groups)]

    def watch(self, places: Sequence[Site], observers: Mapping[str, Observer], bench: Bench) -> None:
        """Hand on the readings."""

        def watch_one(place: Site) -> None:
            def see(reading: Reading, step: Step, row_of: Tensor) -> None:
                for name, observer in observers.items():
                    values = observer.measure(reading)  # (B, ...)
                    if observer.by == "sample":
                        bench.sums.add_trajectories(place.key, name, values, step, row_of)
                    else:
                        buckets = step.buckets[row_of] if observer.by == "bucket" else None
                        bench.sums.add_samples(place.key, name, values, buckets)

            bench.readings.on(place.key, see)

        for place in places:
            watch_one(place)


def heads_of(model: nn.Module, path: str) -> int:
    """Return the number of heads of an attention module."""
    heads = getattr(model.get_submodule(path), "heads", 1)
    return heads if isinstance(heads, int) else 1
