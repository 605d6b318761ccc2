"""Which size each group takes, so that as little importance as possible goes and every bound holds.

A multiple-choice knapsack: one size a group, the loss of a size is the sum of the scores of the units that go, and
each bound is one or several sums over groups that must not pass a goal. Groups have up to thousands of sizes, of which
few matter. The linear relaxation is therefore solved over some sizes at first; its dual prices say which size each
group would like best of all, and those are added until none is new (column generation), so that the relaxation's
optimum, a bound for any plan, is that over all sizes. Then HiGHS (`scipy.optimize.milp`) solves the knapsack in whole
numbers over those sizes and their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix

FIRST, NEAR, ROUNDS, NODES = 17, 4, 50, 1_000
"""Sizes of a group to begin with; neighbours of a wanted size that are considered; rounds; nodes of the search."""
ALL = 2_000
"""With so many sizes in all, each is considered."""
PRECISION = 1e-3
"""By how much, relative, the search may stay above its own bound."""
FAR = 4.0
"""Losses beyond so many times that of a known solution are all alike."""
KEEP = 1e-6
"""What is lost, by a known solution, with all of the cost: of plans as good, the larger is taken."""


@dataclass(frozen=True)
class Item:
    """One group: its sizes, what each loses, and what each frees of every sum.

    Attributes:
        loss: Sum of the scores that go, (sizes,); rises.
        freed: (sums, sizes).
        within: Items (blocks) of which one, if it goes, takes this one with it.
    """

    loss: NDArray[np.float64]
    freed: NDArray[np.float64]
    within: tuple[int, ...] = ()


@dataclass(frozen=True)
class Solution:
    """What was found.

    Attributes:
        rungs: Which size each item takes.
        loss: The sum of the scores that go.
        bound: The least that can go, by the relaxation.
    """

    rungs: list[int]
    loss: float
    bound: float


def solve(items: Sequence[Item], need: NDArray[np.float64], ceiling: float | None = None) -> Solution | None:
    """Choose one size for each item so that of every sum at least `need` (sums,) is freed; None if that cannot be.

    Deterministic. Sums that are met by the dense model are left out. `ceiling` is the loss of some solution, if one is
    known: what loses far more is no part of the best, and the numbers of the program are then of one size.
    """
    bind = _binding(items, need)
    if not bind.any():
        return Solution([0] * len(items), 0.0, 0.0)
    scale = need[bind]
    freed = [item.freed[bind] / scale[:, None] for item in items]
    whole = ceiling or sum((float(item.loss[-1]) for item in items), 0.0) or 1.0
    most = sum((own[0].max(initial=0.0) for own in freed), 0.0) or 1.0
    loss = [
        np.minimum(item.loss / whole, FAR) + KEEP * np.maximum(own[0], 0.0) / most
        for item, own in zip(items, freed, strict=True)
    ]
    chosen = [_spread(len(item.loss)) for item in items]
    relaxed = None
    for _ in range(ROUNDS):
        relaxed = _Program(items, loss, freed, chosen).relaxed()
        if relaxed is None:
            return None
        prices, worths, _ = relaxed
        new = False
        for index, own in enumerate(freed):
            value = loss[index] - prices @ own
            best = int(np.argmin(value))
            if best not in chosen[index] and value[best] < worths[index] - 1e-9:
                chosen[index].add(best)
                new = True
        if not new:
            break
    assert relaxed is not None
    bound = relaxed[2]
    few = sum(len(item.loss) for item in items) <= ALL
    rungs = _Program(
        items,
        loss,
        freed,
        [set(range(len(own))) if few else _neighbours(chosen[index], own) for index, own in enumerate(loss)],
    ).whole()
    if rungs is None:
        return None
    gone = sum(float(item.loss[rung]) for item, rung in zip(items, rungs, strict=True))
    return Solution(rungs, gone, max(0.0, min(bound * whole, gone)))


def _binding(items: Sequence[Item], need: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which sums can decide: more is needed than the dense model has, and no other sum asks for more of less."""
    found = np.zeros(len(need), dtype=bool)
    gives = np.concatenate([item.freed for item in items], axis=1) if items else np.zeros((len(need), 0))
    for row in np.argsort(-need, kind="stable"):
        if need[row] > 0:
            found[row] = not any(np.all(gives[other] <= gives[row]) for other in np.flatnonzero(found))
    return found


def _spread(count: int) -> set[int]:
    return set(np.unique(np.linspace(0, count - 1, min(FIRST, count)).round().astype(int)).tolist())


def _neighbours(chosen: set[int], loss: NDArray[np.float64]) -> set[int]:
    """Return some sizes and those around them."""
    near = {index + step for index in chosen for step in range(-NEAR, NEAR + 1)}
    return {index for index in near if 0 <= index < len(loss)}


class _Program:
    """The knapsack over some sizes of each item; one variable for each size."""

    def __init__(
        self,
        items: Sequence[Item],
        loss: Sequence[NDArray[np.float64]],
        freed: Sequence[NDArray[np.float64]],
        chosen: Sequence[set[int]],
    ) -> None:
        self._names = [(index, rung) for index, own in enumerate(chosen) for rung in sorted(own)]
        place: dict[tuple[int, int], int] = {name: column for column, name in enumerate(self._names)}
        self._loss = np.array([loss[index][rung] for index, rung in self._names])
        self._gives = np.stack([freed[index][:, rung] for index, rung in self._names], axis=1)
        rows, columns = [], []
        for column, (index, _) in enumerate(self._names):
            rows.append(index)
            columns.append(column)
        for index, item in enumerate(items):
            for block in item.within:  # the size does not matter where the block goes
                rows.append(index)
                columns.append(place[block, 1])
        self._count = len(items)
        self._one = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(items), len(self._names)))

    def relaxed(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
        """Return prices of the sums, of the items, and the least loss, where sizes may be mixed."""
        count = self._count
        found = linprog(
            self._loss,
            A_ub=-self._gives,
            b_ub=-np.ones(len(self._gives)),
            A_eq=self._one,
            b_eq=np.ones(count),
            bounds=(0, None),
            method="highs",
        )
        if found.status != 0:
            return None
        return -found.ineqlin.marginals, found.eqlin.marginals, float(found.fun)

    def whole(self) -> list[int] | None:
        """Return the best size of each item; that of an item which goes with a block is the first."""
        count = self._count
        found = milp(
            self._loss,
            constraints=[LinearConstraint(self._gives, lb=1.0), LinearConstraint(self._one, lb=1.0, ub=1.0)],
            integrality=np.ones(len(self._names)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": PRECISION, "node_limit": NODES},
        )
        if found.x is None:
            return None
        rungs = [0] * count
        for (index, rung), value in zip(self._names, found.x, strict=True):
            if value > 0.5:
                rungs[index] = rung
        return rungs
