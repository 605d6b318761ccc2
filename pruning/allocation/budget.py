"""What is asked: a target, and limits on where units may go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pruning.errors import PruningError
from pruning.types import PrunableGroup

TOLERANCE = 0.01  # a target counts as hit within this relative distance


@dataclass(frozen=True)
class Target:
    """How slim the model shall be; exactly one of the three.

    Attributes:
        macs: Fraction of the dense model's MACs to keep, in (0, 1].
        params: Fraction of the dense model's parameters to keep, in (0, 1].
        ratio: Pruning ratio: fraction of the prunable parameters to remove, in [0, 1).
    """

    macs: float | None = None
    params: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        given = {n: v for n in ("macs", "params", "ratio") if (v := getattr(self, n)) is not None}
        if len(given) != 1:
            raise PruningError(f"target: give exactly one of macs, params, ratio; given: {given or 'none'}")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise PruningError(
                f"target.ratio = {self.ratio}: must be in [0, 1) (the fraction that is removed)"
            )
        for name in ("macs", "params"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise PruningError(f"target.{name} = {value}: must be in (0, 1] (the fraction that is kept)")

    @property
    def measure(self) -> str:
        """What is counted: ``"macs"`` or ``"params"``."""
        return "macs" if self.macs is not None else "params"

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"pruning ratio {self.ratio:g}"
        kept = self.macs if self.macs is not None else self.params
        return f"{kept:g} of the dense {'MACs' if self.measure == 'macs' else 'parameters'}"


@dataclass(frozen=True)
class Limit:
    """A bound on what may go from the groups that `match` names.

    Attributes:
        match: A kind (``attention_heads``) or a glob on group names (``transformer_blocks.0.*``).
        max_ratio: Largest fraction of a group's units that may go, in [0, 1].
        min_units: Fewest units a group keeps.
    """

    match: str
    max_ratio: float = 1.0
    min_units: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.max_ratio <= 1:
            raise PruningError(f"limit {self.match!r}: max_ratio = {self.max_ratio} must be in [0, 1]")
        if self.min_units < 1:
            raise PruningError(f"limit {self.match!r}: min_units = {self.min_units} must be at least 1")

    def covers(self, group: PrunableGroup) -> bool:
        """Tell whether this limit is about `group`."""
        return self.match == group.kind or any(fnmatchcase(n, self.match) for n in (group.name, group.module))


def sizes(group: PrunableGroup, round_to: int, min_units: int, limits: Sequence[Limit]) -> list[int]:
    """Return the numbers of units that `group` may keep, from all of them downwards.

    Apart from the dense size, the kept channels are multiples of lcm(unit_size, round_to). For a block: 1, 0.
    """
    limits = [limit for limit in limits if limit.covers(group)]
    may_go = min([1.0, *(limit.max_ratio for limit in limits)])
    if group.kind == "blocks":
        return [1, 0] if may_go == 1.0 else [1]
    floor = max([min_units, *(limit.min_units for limit in limits)])
    floor = max(floor, math.ceil(group.num_units * (1 - may_go) - 1e-9), 1)
    step = math.lcm(group.unit_size, round_to) // group.unit_size
    largest = (group.num_units - 1) // step * step
    return [group.num_units, *(n for n in range(largest, 0, -step) if n >= floor)]


def check_limits(groups: Sequence[PrunableGroup], limits: Sequence[Limit]) -> None:
    """Raise PruningError for a limit that covers no group."""
    for limit in limits:
        if not any(limit.covers(group) for group in groups):
            names = ", ".join(group.name for group in groups[:3])
            raise PruningError(f"limit {limit.match!r} matches no group; groups are named like {names}")
