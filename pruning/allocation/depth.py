"""Which blocks go, decided by measuring sets of blocks together: a set is not the sum of its blocks.

A search under a budget of measurements. It starts from a plan that added up scores of single blocks, builds a set of
its own by the cheapest measured moves, and improves the best so far by swaps. A move takes out one block or a run of
neighbours. Which sets are worth a measurement is told by what is expected of them (`interactions`), which every
measurement corrects. No model is in here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from pruning.allocation.block_sets import NONE, BlockSet, BlockSets
from pruning.allocation.budget import TOLERANCE
from pruning.allocation.cost import CostModel
from pruning.allocation.interactions import Interactions
from pruning.errors import PruningError
from pruning.settings import Prune
from pruning.types import PrunableGroup, PruningPlan

Measure = Callable[[tuple[str, ...]], float]

ROUNDING = 1e-9
BUILDING = 0.25
"""Share of the budget that building a set from nothing may take."""
HOPE = 2.0
"""A set may change so many standard deviations less than is expected of it."""
STARTS = 3
"""The best sets so many of which swaps are looked at."""
STEPS = 10
"""Swaps on expectation alone, at most, from one measurement to the next."""
RANGES, CARRIED = 200, 8
"""Of so many ranges of cost, so many sets are carried on where single changes are added up."""


@dataclass(frozen=True)
class DepthSearch:
    """What a search found.

    Attributes:
        removed: Paths of the blocks that go, in the order of the model.
        trace: JSON types; see `search_depth`.
    """

    removed: tuple[str, ...]
    trace: dict[str, Any]


def search_depth(
    groups: Sequence[PrunableGroup],
    cost: CostModel,
    settings: Prune,
    start: PruningPlan,
    measure: Measure,
    *,
    goal: float,
    alone: Mapping[str, float] | None = None,
) -> DepthSearch:
    """Find blocks that change the output least when they go together, at the cost that a plan comes to; deterministic.

    Args:
        groups: What may be removed; those of kind ``blocks`` that `settings.limits` let go are the candidates.
        cost: Predicts MACs and parameters.
        settings: Its limits, what its target counts, and `depth.budget`: the most sets that are measured.
        start: The plan to refine, of which only the blocks are read. They are measured first, and the outcome is never
            worse.
        measure: Takes paths of blocks (`PrunableGroup.module`), none inside another; returns the change of the output
            when these go together, 0 or more. It is asked once for each set.
        goal: Cost to come to with blocks gone and all else dense. A set counts as there if it is as near to the goal
            as `start`, or within `TOLERANCE` of it.
        alone: The change of the output without each single block, by path, where it is known. What is not known is
            measured, as far as half of the budget goes.

    Returns:
        The blocks, and the trace: ``start`` and ``chosen`` (each with ``removed``, ``change``, ``cost`` and
        ``sum_alone``, the sum of the changes of its single blocks, None where one is not known), ``measured`` (each
        measured set in order, likewise without the sum), ``goal``, ``dense`` (cost) and ``budget``. If `start` removes
        no block there is nothing to choose, and ``start`` and ``chosen`` are None.

    Raises:
        PruningError: If `measure` returns something else than a finite number of at least 0.
    """
    sets = BlockSets.of(groups, cost, settings)
    first = sets.of_paths(start.completed(groups).removed_blocks)
    slack = max(TOLERANCE * goal, abs(sets.cost(first) - goal)) * (1 + ROUNDING)
    search = _Search(sets, measure, settings.depth.budget, low=goal - slack, high=goal + slack)
    chosen = search.run(first, alone) if first and settings.depth.budget else first
    trace = {
        "start": search.described(first),
        "chosen": search.described(chosen),
        "measured": [search.entry(gone) for gone in search.changes],
        "goal": goal,
        "dense": sets.dense,
        "budget": settings.depth.budget,
    }
    return DepthSearch(sets.paths_of(chosen), trace)


class _Search:
    """A search at work.

    Args:
        sets: The candidates.
        measure: Measures a set.
        budget: Most measurements.
        low: Least cost of a set that is there.
        high: Highest cost of a set that is there.

    Attributes:
        changes: The change of each measured set, in the order of measuring.
    """

    def __init__(self, sets: BlockSets, measure: Measure, budget: int, *, low: float, high: float) -> None:
        self._sets, self._measure, self._budget, self._low, self._high = sets, measure, budget, low, high
        self.changes: dict[BlockSet, float] = {}
        self._alone: dict[int, float] = {}

    def run(self, start: BlockSet, alone: Mapping[str, float] | None) -> BlockSet:
        """Return the best set that the budget finds."""
        self._change(start)
        self._singles = self._single_changes(alone or {})
        self._expected = Interactions(self._singles)
        self._sums = self._by_sum(NONE)
        self._measure_first(self._sums)
        self._build()
        while self._left and (gone := self._likeliest()):
            self._change(gone)
        return self._best()

    def entry(self, gone: BlockSet) -> dict[str, Any]:
        """Return what is known of a measured set, as JSON types."""
        paths = list(self._sets.paths_of(gone))
        return {"removed": paths, "change": self.changes[gone], "cost": self._sets.cost(gone)}

    def described(self, gone: BlockSet) -> dict[str, Any] | None:
        """Return the same, and the sum of the changes of its single blocks; None if it was not measured."""
        if gone not in self.changes:
            return None
        alone = [self._alone[index] for index in gone if index in self._alone]
        return {**self.entry(gone), "sum_alone": sum(alone) if len(alone) == len(gone) else None}

    @property
    def _left(self) -> int:
        return self._budget - len(self.changes)

    def _change(self, gone: BlockSet) -> float:
        """Return the change of a set, measured now if it has not been."""
        if gone and gone not in self.changes:
            paths = self._sets.paths_of(gone)
            found = float(self._measure(paths))
            if not 0 <= found < math.inf:
                raise PruningError(
                    f"the change of the output without {', '.join(paths)} was measured as {found}; it must be a finite "
                    "number of at least 0"
                )
            self.changes[gone] = found
        return self.changes[gone] if gone else 0.0

    def _measure_first(self, sets: Iterable[BlockSet]) -> None:
        """Measure the first set that is new."""
        gone = next(filter(self._is_new, sets), None)
        if gone and self._left:
            self._change(gone)

    def _single_changes(self, alone: Mapping[str, float]) -> Tensor:
        """Return the change without each single block, (n,): known, measured now, or at the others' mean price."""
        for index, path in enumerate(self._sets.paths):
            if path in alone:
                self._alone[index] = alone[path]
            elif self._left > self._budget // 2:
                self._alone[index] = self._change(frozenset({index}))
        freed = self._sets.freed
        known = sum(freed[index] for index in self._alone)
        price = sum(self._alone.values()) / known if known else 1.0
        singles = [self._alone.get(index, price * size) for index, size in enumerate(freed)]
        return torch.tensor(singles, dtype=torch.float64)

    def _best(self) -> BlockSet:
        """Return the set that changes least of those that are there; the first of equals."""
        return min(filter(self._is_there, self.changes), key=self.changes.__getitem__)

    def _is_there(self, gone: BlockSet) -> bool:
        return self._low <= self._sets.cost(gone) <= self._high

    def _is_new(self, gone: BlockSet) -> bool:
        return bool(gone) and gone not in self.changes and self._is_there(gone)

    def _build(self) -> None:
        """Build a set from nothing: in each round measure the moves that look cheapest, and take the cheapest.

        When its share of the budget is spent, the rest goes by the sum of single changes.
        """
        gone, stop = NONE, self._left - int(BUILDING * self._left)
        trials = max(2, (self._left - stop) // max(1, len(self._best())))
        while self._left > stop and not self._is_there(gone):
            tried = self._cheapest(gone, min(trials, self._left - stop))
            if not tried:
                return
            gone = min(tried, key=lambda after: self._price(gone, after, self._change(after)))
        if gone:
            self._measure_first(self._by_sum(gone))

    def _cheapest(self, gone: BlockSet, count: int) -> list[BlockSet]:
        """Return what moves would make of a set, those of the lowest price that they may have: half of them runs.

        Of the runs the best of each length comes first.
        """
        by_length: dict[int, list[BlockSet]] = {}
        for move in self._sets.moves(gone):
            after = self._sets.reduced(gone | move)
            if self._sets.cost(gone) > self._sets.cost(after) >= self._low:
                by_length.setdefault(len(move), []).append(after)
        self._learn()
        for sets in by_length.values():
            hoped = dict(zip(sets, self._hoped(self._sets.rows(sets)).tolist(), strict=True))
            sets.sort(key=lambda after, hoped=hoped: self._price(gone, after, hoped[after]))
        single, longer = by_length.pop(1, []), [by_length[length] for length in sorted(by_length)]
        runs = [after for alike in zip_longest(*longer) for after in alike if after is not None]
        half = max(count - len(single), min(count // 2, len(runs)))
        return [*single[: count - half], *runs[:half]]

    def _price(self, gone: BlockSet, after: BlockSet, change: float) -> float:
        """Return by how much the change grows from one set to the next, by what that frees."""
        freed = self._sets.cost(gone) - self._sets.cost(after)
        return (change - self._change(gone)) / freed

    def _likeliest(self) -> BlockSet | None:
        """Return the new set that may change least, of those around the best sets and of the least sums.

        From there it swaps on, as long as a further set may change less.
        """
        self._learn()
        best = sorted(filter(self._is_there, self.changes), key=self.changes.__getitem__)[:STARTS]
        near = [self._sets.swapped(gone) for gone in best]
        found, least = self._least(torch.cat([*near, self._sets.rows(self._sums)]))
        for _ in range(STEPS):
            further, value = self._least(self._sets.swapped(found)) if found else (None, math.inf)
            if value >= least:
                break
            found, least = further, value
        return found

    def _least(self, rows: Tensor) -> tuple[BlockSet | None, float]:
        """Return the new set, of those in rows, that may change least, and what that may be."""
        rows = self._sets.between(rows, self._low, self._high)
        hoped = self._hoped(rows)
        for index in torch.sort(hoped, stable=True).indices.tolist():
            gone = self._sets.sets(rows[index : index + 1])[0]
            if self._is_new(gone):
                return gone, float(hoped[index])
        return None, math.inf

    def _hoped(self, rows: Tensor) -> Tensor:
        """Return what sets may change: what is expected, less `HOPE` standard deviations, (K,)."""
        expected, deviation = self._expected.of(rows)
        return expected - HOPE * deviation

    def _learn(self) -> None:
        sets, changes = list(self.changes), list(self.changes.values())
        self._expected.learn(self._sets.rows(sets), torch.tensor(changes, dtype=torch.float64))

    def _by_sum(self, within: BlockSet) -> list[BlockSet]:
        """Return sets around `within` that are there, by the sum of their single changes, the least first.

        A knapsack, nearly: block by block, the few best sets of every range of cost are carried on.
        """
        width = (self._sets.dense - self._low) / RANGES
        values = self._singles.tolist()
        carried: dict[int, list[tuple[float, BlockSet]]] = {0: [(sum(values[k] for k in within), within)]}
        for index in self._sets.outer_first:
            for _, gone in [state for states in carried.values() for state in states]:
                after = self._sets.reduced(gone | {index})
                freed = self._sets.dense - self._sets.cost(after)
                if index in after and index not in gone and self._sets.dense - freed >= self._low:
                    carried.setdefault(int(freed / width), []).append((sum(values[k] for k in after), after))
            for place, states in carried.items():
                carried[place] = sorted(states, key=lambda state: state[0])[:CARRIED]
        found = [state for states in carried.values() for state in states if self._is_there(state[1])]
        return [gone for _, gone in sorted(found, key=lambda state: (state[0], sorted(state[1])))]
