"""Which sizes a group may take: rounding, and limits on where units may go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from pruning.errors import PruningError
from pruning.groups.experts import EXPERTS
from pruning.settings import Limit, Prune
from pruning.types import PrunableGroup

TOLERANCE = 0.01  # a target counts as hit within this relative distance


def covers(limit: Limit, group: PrunableGroup) -> bool:
    """Tell whether a limit is about `group`."""
    return limit.match == group.kind or any(fnmatchcase(n, limit.match) for n in (group.name, group.module))


def sizes(group: PrunableGroup, settings: Prune) -> Sequence[int]:
    """Return the numbers of units that `group` may keep, from all of them downwards.

    Apart from the dense size, the kept channels are multiples of lcm(unit_size, round_to); experts have none. For a
    block: 1, 0.
    """
    limits = [limit for limit in settings.limits if covers(limit, group)]
    may_go = min([1.0, *(limit.max_ratio for limit in limits if limit.max_ratio is not None)])
    asked = max((limit.min_units or 0 for limit in limits), default=0)
    if group.kind == "blocks":
        return [1, 0] if may_go == 1.0 and not asked else [1]
    floor = max(settings.min_units, group.min_units, asked, math.ceil(group.num_units * (1 - may_go) - 1e-9))
    round_to = 1 if group.kind == EXPERTS else settings.round_to
    step = math.lcm(group.unit_size, round_to) // group.unit_size
    if group.num_units % step == 0:
        return range(group.num_units, min(floor, group.num_units) - 1, -step)
    largest = group.num_units // step * step
    return [group.num_units, *range(largest, floor - 1, -step)]


def check_limits(groups: Sequence[PrunableGroup], limits: Sequence[Limit]) -> None:
    """Raise PruningError for a limit that covers no group."""
    for limit in limits:
        if not any(covers(limit, group) for group in groups):
            names = ", ".join(group.name for group in groups[:3])
            raise PruningError(f"limit {limit.match!r} matches no group; groups are named like {names}")
