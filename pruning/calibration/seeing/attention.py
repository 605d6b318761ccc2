"""Seeing the calls of attention modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.calibration.attention.reading import Reading
from pruning.calibration.attention.sites import measured_sites
from pruning.calibration.context import Context
from pruning.calibration.observer import Observer, Sight
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

    @classmethod
    def of(cls, model: nn.Module, path: str) -> Site:
        """Return the attention module at `path`."""
        heads = getattr(model.get_submodule(path), "heads", 1)
        return cls(path, heads if isinstance(heads, int) else 1)


@dataclass(frozen=True)
class Attention(Sight):
    """Sees the `Reading` of each call; measures give one value per sample of its batch, (B, ...)."""

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[Site]:
        """Return the attention modules of the groups."""
        return [Site.of(model, path) for path in measured_sites(model, groups)]

    def watch(self, places: Sequence[Site], observers: Mapping[str, Observer], context: Context) -> None:
        """Hand on the readings."""

        def see(reading: Reading, step: Step, row_of: Tensor) -> None:
            context.add_samples(at[reading.call.path], observers, reading, step, row_of)

        at = {place.key: place for place in places}
        for path in at:
            context.readings.on(path, see)
