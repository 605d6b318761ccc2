"""Sets of blocks that may go together: what they cost, and which blocks are neighbours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pruning.allocation.budget import sizes
from pruning.allocation.cost import CostModel
from pruning.settings import Prune
from pruning.types import PrunableGroup, lies_in

LONGEST = 6
"""Most neighbours in a run."""

BlockSet = frozenset[int]
"""Blocks that go, by index; none of them lies inside another one."""
NONE: BlockSet = frozenset()


@dataclass(frozen=True)
class BlockSets:
    """The blocks that may go, n of them, and what sets of them cost.

    Attributes:
        paths: `PrunableGroup.module` of each.
        around: For each, the blocks that it lies in; it goes with any of them.
        freed: What goes with it.
        dense: What the dense model costs.
    """

    paths: tuple[str, ...]
    around: tuple[BlockSet, ...]
    freed: tuple[float, ...]
    dense: float

    @classmethod
    def of(cls, groups: Sequence[PrunableGroup], cost: CostModel, settings: Prune) -> BlockSets:
        """Take the groups of kind ``blocks`` that `settings.limits` let go; costs are those that its target counts."""
        blocks = [group for group in groups if group.kind == "blocks" and 0 in sizes(group, settings)]
        measure = settings.target.measure
        freed = cost.unit_costs(measure)

        def is_inside(block: PrunableGroup, other: PrunableGroup) -> bool:
            return all(lies_in(path, other.paths) for path in block.paths)

        return cls(
            paths=tuple(block.module for block in blocks),
            around=tuple(
                frozenset(
                    k for k, other in enumerate(blocks) if other is not block and is_inside(block, other)
                )
                for block in blocks
            ),
            freed=tuple(freed[block.name] for block in blocks),
            dense=float(cost.macs() if measure == "macs" else cost.params()),
        )

    def of_paths(self, paths: Collection[str]) -> BlockSet:
        """Return the set of the blocks at these paths; other paths, such as those that go with one, are passed over."""
        return self.reduced(index for index, path in enumerate(self.paths) if path in paths)

    def paths_of(self, gone: BlockSet) -> tuple[str, ...]:
        """Return the paths of a set in the order of the model."""
        return tuple(self.paths[index] for index in sorted(gone))

    def reduced(self, blocks: Iterable[int]) -> BlockSet:
        """Return blocks as a set, without those that lie inside others of them."""
        gone = frozenset(blocks)
        return frozenset(index for index in gone if self.around[index].isdisjoint(gone))

    def cost(self, gone: BlockSet) -> float:
        """Return what the model costs without a set: blocks lie inside each other or have nothing in common."""
        return self.dense - sum(self.freed[index] for index in gone)

    @cached_property
    def outer_first(self) -> list[int]:
        """All blocks, each one behind those that it lies in."""
        return sorted(range(len(self.paths)), key=lambda index: len(self.around[index]))

    def moves(self, gone: BlockSet) -> list[BlockSet]:
        """Return the single blocks and the runs of neighbours that may go next: of those that are still there."""
        present = [k for k, around in enumerate(self.around) if k not in gone and around.isdisjoint(gone)]
        return list(self._runs(present, set(range(len(self.paths))).difference(present)))

    def runs(self, gone: BlockSet) -> list[BlockSet]:
        """Return the single blocks and the runs of neighbours in a set."""
        return list(self._runs(gone, ()))

    def _runs(self, blocks: Collection[int], over: Collection[int]) -> Iterator[BlockSet]:
        """Yield each block, and each run with at most blocks of `over` in between."""
        for first in sorted(blocks):
            run, place = (first,), self._places[first]
            yield frozenset(run)
            while place is not None and len(run) < LONGEST:
                place = (place[0], place[1] + 1)
                index = self._at.get(place, -1)
                if index in blocks:
                    run = (*run, index)
                    yield frozenset(run)
                elif index not in over:
                    break

    @cached_property
    def _places(self) -> list[tuple[str, int] | None]:
        """Of each block the list that it is an item of, and where in it; None for one that is in no list."""
        parts = [path.rpartition(".") for path in self.paths]
        return [(parent, int(name)) if name.isdigit() else None for parent, _, name in parts]

    @cached_property
    def _at(self) -> dict[tuple[str, int] | None, int]:
        return {place: index for index, place in enumerate(self._places) if place is not None}

    # Many sets at once, as rows of zeros and ones, float64 (K, n).

    def rows(self, sets: Sequence[BlockSet]) -> Tensor:
        """Return sets as rows."""
        rows = torch.zeros(len(sets), len(self.paths), dtype=torch.float64)
        for row, gone in zip(rows, sets, strict=True):
            row[list(gone)] = 1
        return rows

    def sets(self, rows: Tensor) -> list[BlockSet]:
        """Return rows as sets."""
        return [frozenset(row.nonzero().flatten().tolist()) for row in rows]

    def swapped(self, gone: BlockSet) -> Tensor:
        """Return what a set becomes when a run of it comes back, or nothing, and another run goes, or nothing."""
        back, out = self.rows([NONE, *self.runs(gone)]), self.rows([NONE, *self.moves(gone)])
        rows = (self.rows([gone])[None] - back[:, None] + out[None]).flatten(0, 1)
        return rows * ((rows @ self.rows(self.around).T) == 0)

    def between(self, rows: Tensor, low: float, high: float) -> Tensor:
        """Return the rows whose sets cost from `low` to `high`, each once."""
        costs = self.dense - rows @ torch.tensor(self.freed, dtype=torch.float64)
        return rows[(low <= costs) & (costs <= high)].unique(dim=0)
