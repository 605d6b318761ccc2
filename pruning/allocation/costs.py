"""What may be bounded of a model: costs of plans, and of each group at each number of kept units.

A cost prices whole plans (`total`), and says how it comes about (`sums`): as the largest of sums over groups, in which
a group frees something for each size that it may take, in proportion to its units or not. Multiply-accumulates,
parameters and milliseconds are one sum each; the peak of memory is the largest of many, one for each moment of a call.
A solver works with the sums and believes the totals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pruning.allocation.cost import CostModel
from pruning.types import PrunableGroup, PruningPlan

Freed = Callable[[PrunableGroup, Sequence[int]], NDArray[np.float64]]
"""What a group frees where so many units stay, for each of some numbers; of a block 0 units is without the block."""


@dataclass(frozen=True)
class Sum:
    """A cost that is the dense model's less what each group frees.

    What a removed block frees is all that is inside it; groups inside it then free nothing besides.
    """

    dense: float
    freed: Freed


class Cost(Protocol):
    """What is paid for a model.

    Attributes:
        key: Its name: ``macs``, ``params``, ``latency`` or ``memory``.
        unit: What it is counted in, in words.
    """

    key: str
    unit: str

    def total(self, plan: PruningPlan | None = None) -> float:
        """Return what a plan costs, the dense model for None."""
        ...

    def sums(self) -> Sequence[Sum]:
        """Return sums, the largest of which is the cost, exactly or nearly."""
        ...

    def known(self, group: PrunableGroup) -> Collection[int] | None:
        """Return the numbers of kept units whose cost is known, where others are a guess; None: all are."""
        ...


@dataclass(frozen=True)
class Counted:
    """Multiply-accumulates or parameters, as `CostModel` counts them.

    The sum leaves out that a weight which two groups cut, one along each dimension, shrinks by both.
    """

    cost: CostModel
    key: str  # macs or params

    @property
    def unit(self) -> str:
        """What it is counted in."""
        return {"macs": "MACs", "params": "parameters"}[self.key]

    def total(self, plan: PruningPlan | None = None) -> float:
        """Return the MACs of a call, or the parameters, of a plan."""
        return self.cost.macs(plan) if self.key == "macs" else self.cost.params(plan)

    def sums(self) -> Sequence[Sum]:
        """Return one sum: units of a group all cost the same."""
        units = self.cost.unit_costs(self.key)

        def freed(group: PrunableGroup, kept: Sequence[int]) -> NDArray[np.float64]:
            return units[group.name] * (group.num_units - np.asarray(kept, dtype=np.float64))

        return [Sum(float(self.total()), freed)]

    def known(self, group: PrunableGroup) -> None:
        """All costs are counted."""
        return


@dataclass(frozen=True)
class Bound:
    """A cost and the most that it may come to.

    Attributes:
        key: The target's name in the recipe, such as ``latency_ms``.
        asked: The target in words.
        cost: What is counted.
        goal: The most, in the unit of the cost.
    """

    key: str
    asked: str
    cost: Cost
    goal: float

    def share(self, plan: PruningPlan) -> float:
        """Return what a plan costs by the most that it may; over 1 the bound is broken."""
        return self.cost.total(plan) / self.goal

    def words(self, value: float) -> str:
        """Return an amount in words."""
        return in_words(self.cost.key, value)


def in_words(key: str, value: float) -> str:
    """Return an amount of a cost in words: ``12,300 MACs``, ``41.5 ms``, ``0.061 GB``."""
    if key == "latency":
        return f"{1e3 * value:,.4g} ms"
    if key == "memory":
        return f"{value / 1e9:,.4g} GB"
    return f"{value:,.0f} {'MACs' if key == 'macs' else 'parameters'}"


def as_asked(row: Mapping[str, Any], value: float) -> str:
    """Return an amount of a target (a row of a plan's ``meta["targets"]``) in the words in which it was asked."""
    if "of the dense" in row["asked"]:
        return f"{value / row['dense']:.3f} of dense"
    return in_words(row["cost"], value)


def costs_of(cost: CostModel, measured: Mapping[str, Cost]) -> dict[str, Cost]:
    """Return all costs of a model by key: those that are counted, and those that were measured or traced."""
    counted: dict[str, Any] = {key: Counted(cost, key) for key in ("macs", "params")}
    return {**counted, **measured}
