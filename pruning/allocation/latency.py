"""Milliseconds of a call, from a table of layers measured on the device: how much time each group takes at each width.

Time is not in proportion to units. A layer has a part that no unit takes with it, and kernels work in tiles: widths
that are no multiple of what the device likes take longer than the next wider one that is. The table therefore holds,
for each kind of layer of one shape, a curve through measured widths, which plans choose among, and for each kind of
group how much longer uneven widths take than the curve says between those. A plan takes the dense call's time, less
what the layers that it cuts and the blocks that it removes save; all else is a constant, so that the dense model's
prediction is its measured time. Where layers are smaller the others run faster, too, since more stays in the caches:
what layers save counts by as much more as whole calls saved when the table was measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruning.allocation.costs import Sum
from pruning.types import PrunableGroup, PruningPlan, lies_in

TILE = 64
"""Multiples of channels beyond this are all alike to a device."""


def evenness(channels: int) -> int:
    """Return the largest power of two, at most `TILE`, of which a number of channels is a multiple."""
    return math.gcd(channels, TILE)


@dataclass(frozen=True)
class Curve:
    """How the time of a layer falls with the units of a group in it.

    Attributes:
        kept: Units that stay, rising; the last is all of them.
        share: The layer's time at each, by its time in the dense model; the last is 1.
        spread: Interquartile range of the measurements behind each share.
        exact: Every size was measured, so that steps are in the curve.
    """

    kept: tuple[int, ...]
    share: tuple[float, ...]
    spread: tuple[float, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class LatencyTable:
    """What a call takes on one device, by layer; see the top of this file.

    Attributes:
        call_s: Median time of a dense call in seconds.
        spread: Interquartile range of it by the median.
        seconds: Time of the layer that each group is in, in the dense model, by group; of a block, its time.
        curves: By name of a curve.
        curve_of: Which curve each group follows.
        steps: By kind of group and `evenness` of the channels that stay, how much longer a layer takes.
        beyond: What a call saves when layers are cut, by what these save themselves.
        extra_s: Seconds that the constant is corrected by, after a slim model was measured.
        meta: How it was measured (JSON types).
    """

    call_s: float
    spread: float
    seconds: Mapping[str, float]
    curves: Mapping[str, Curve]
    curve_of: Mapping[str, str]
    steps: Mapping[str, Mapping[str, float]]
    groups: tuple[PrunableGroup, ...]
    beyond: float = 1.0
    extra_s: float = 0.0
    meta: Mapping[str, Any] = field(default_factory=dict)

    key = "latency"
    unit = "s"

    def total(self, plan: PruningPlan | None = None) -> float:
        """Return the seconds of a call under a plan; the smaller forms of weights are not priced."""
        plan = (plan or PruningPlan()).completed(self.groups)
        total, gone = self.call_s, plan.removed_blocks
        for group in self.groups:
            if group.kind == "blocks":
                outer = [path for path in gone if path != group.module]
                total -= self._saved(group, 0) * (group.module in gone and not lies_in(group.module, outer))
            elif group.name in plan.kept and not lies_in(group.module, gone):
                total -= self._saved(group, len(plan.kept[group.name]))
        return total + self.extra_s * (plan.kept != {} or gone != ())

    def sums(self) -> Sequence[Sum]:
        """Return the one sum that it is."""
        by_name = {group.name: group for group in self.groups}
        return [Sum(self.call_s + self.extra_s, lambda group, kept: self._freed(by_name[group.name], kept))]

    def known(self, group: PrunableGroup) -> Collection[int] | None:
        """Return the sizes that were measured; of a block or a layer that a call does not run, None."""
        name = self.curve_of.get(group.name)
        return None if name is None else self.curves[name].kept

    def corrected(self, predicted: float, measured: float) -> LatencyTable:
        """Return the table whose constant says what a slim model was measured to take, in seconds."""
        return replace(self, extra_s=self.extra_s + measured - predicted)

    def _saved(self, group: PrunableGroup, kept: int) -> float:
        return float(self._freed(group, [kept])[0])

    def _freed(self, group: PrunableGroup, kept: Sequence[int]) -> NDArray[np.float64]:
        counts, seconds = np.asarray(kept, dtype=np.int64), self.seconds.get(group.name, 0.0)
        if group.kind == "blocks":
            return np.asarray(seconds * (1.0 - counts), dtype=np.float64)
        if group.name not in self.curve_of:  # a layer that a call does not run
            return np.zeros(len(counts))
        whole = counts == group.num_units
        curve = self.curves[self.curve_of[group.name]]
        share = np.interp(counts, curve.kept, curve.share)
        if not curve.exact:
            steps = self.steps.get(group.kind, {})
            factors = {even: steps.get(str(even), 1.0) for even in (1, 2, 4, 8, 16, 32, TILE)}
            even = np.gcd(counts * group.unit_size, TILE)
            share = share * np.array([factors[int(e)] for e in even])
        saved = np.asarray(self.beyond * seconds * (1.0 - share), dtype=np.float64)
        saved[whole] = 0.0
        return saved

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types, without the groups."""
        values = {key: value for key, value in vars(self).items() if key not in ("groups", "curves")}
        return {**values, "curves": {name: asdict(curve) for name, curve in self.curves.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], groups: Sequence[PrunableGroup]) -> LatencyTable:
        """Return the table that `to_json` wrote, of a model with these groups."""

        def curve(found: Mapping[str, Any]) -> Curve:
            kept, share, spread = (tuple(found.get(key, ())) for key in ("kept", "share", "spread"))
            return Curve(kept, share, spread, bool(found.get("exact")))

        curves = {name: curve(found) for name, found in values["curves"].items()}
        return cls(**{**values, "curves": curves}, groups=tuple(groups))
