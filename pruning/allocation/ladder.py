"""The ways down of a group: which sizes it may take, which units go first, and what each step is worth.

A step takes a group from one size to the next smaller one; its least important units go. Prices put the steps of all
groups into one order. They never fall within a group, so that its steps come in their own order.

A score per cost means something only where 0 means "costs nothing". Scores that go below zero (standardised ones,
negated ones) have no such zero: divided by a cost, the worst would look the better the more expensive they are. They
are compared as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from pruning.types import PrunableGroup, Scores

logger = logging.getLogger(__name__)

ROUNDING = 1e-9
"""Scores below zero by no more than this share of the highest score's magnitude count as 0."""


@dataclass(frozen=True)
class Ladder:
    """The ways down of one group.

    Attributes:
        group: The group.
        sizes: Units that stay on each rung, from all of them downwards.
        order: All units, the least important first.
        scores: The score of each unit in that order.
        unit_cost: What one unit costs in the dense model.
    """

    group: PrunableGroup
    sizes: Sequence[int]
    order: Sequence[int]
    scores: list[float]
    unit_cost: float

    @classmethod
    def of(
        cls, group: PrunableGroup, scores: Scores | None, sizes: Sequence[int], unit_cost: float
    ) -> Ladder:
        """Order the units of a group by their scores; the last go first without any."""
        if scores is None:
            return cls(group, sizes, range(group.num_units)[::-1], [0.0] * group.num_units, unit_cost)
        values, order = torch.sort(scores.values[group.name].double(), stable=True)
        return cls(group, sizes, order.tolist(), values.tolist(), unit_cost)

    @property
    def is_block(self) -> bool:
        """Whether the group is a whole block."""
        return self.group.kind == "blocks"

    def kept(self, rung: int) -> tuple[int, ...]:
        """Return the units that stay on a rung."""
        return tuple(sorted(self.order[self.group.num_units - self.sizes[rung] :]))

    def freed(self, rung: int) -> float:
        """Return what the step from a rung to the next frees."""
        return (self.sizes[rung] - self.sizes[rung + 1]) * self.unit_cost


def global_prices(ladders: Sequence[Ladder], per_cost: bool) -> list[Tensor]:
    """Return the price of each step: the scores of the units that go, by the cost freed or by their number.

    Within a group it is the largest so far, so that it never falls.
    """

    def prices(ladder: Ladder) -> Tensor:
        total, unit = ladder.group.num_units, ladder.unit_cost if per_cost else 1
        ratios = [
            sum(ladder.scores[total - above : total - below]) / max((above - below) * unit, 1e-12)
            for above, below in pairwise(ladder.sizes)
        ]
        return torch.tensor(list(accumulate(ratios, max)), dtype=torch.float64)

    return [prices(ladder) for ladder in ladders]


def local_prices(ladders: Sequence[Ladder]) -> list[Tensor]:
    """Return the fraction of the units that are gone after each step: all groups lose about as much at any time.

    Blocks count as the units of one group, which go in the order of their scores.
    """
    blocks = sorted((x for x in ladders if x.is_block and len(x.sizes) > 1), key=lambda x: x.scores[0])
    gone = {x.group.name: (place + 1) / len(blocks) for place, x in enumerate(blocks)}

    def prices(ladder: Ladder) -> Tensor:
        units, left = ladder.group.num_units, torch.tensor(ladder.sizes[1:], dtype=torch.float64)
        share = gone.get(ladder.group.name)
        return (units - left) / units if share is None else torch.full_like(left, share)

    return [prices(ladder) for ladder in ladders]


def have_a_zero(ladders: Sequence[Ladder], scores: Scores) -> bool:
    """Tell whether scores may be divided by costs; if not, say so."""
    lowest = min(ladders, key=lambda ladder: ladder.scores[0], default=None)  # each ladder's scores rise
    if lowest is None or lowest.scores[0] >= -ROUNDING * max(abs(ladder.scores[-1]) for ladder in ladders):
        return True
    logger.warning(
        "prune.per_cost: scores of the criterion %r go below zero (%g in group %r), so that a score per cost means "
        "nothing; units are compared by their scores alone, as with prune.per_cost=false",
        scores.meta.get("criterion", "unknown"),
        lowest.scores[0],
        lowest.group.name,
    )
    return False
