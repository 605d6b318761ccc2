"""What experts compute when some of them are gone: the tokens are then sent to those that stay.

A token is sent to as many experts as before, so the work of a layer stays what it is. Which experts get how many tokens
follows from weights and inputs; here all get equally many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from pruning.groups.experts import EXPERTS, mixture_at
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class Routed:
    """The work of the experts of one layer.

    Attributes:
        group: The experts.
        experts: Path of what holds them.
        stacked: Whether their weights are stacked.
        applications: How often an element of the weights of any expert is multiplied in one call, over all experts of
            a list; 0 for a stack, whose products are those of the module that holds it.
        room: What each expert takes of the tokens of a sample, if it is they who choose: as many as ``room / E`` for
            each of E experts, rounded up; 0 where tokens choose.
    """

    group: PrunableGroup
    experts: str
    stacked: bool
    applications: int = 0
    room: float = 0.0

    def rows(self, experts: int) -> float:
        """Return what so many experts take, in proportion: all that they took, but for rounding."""
        return experts * max(1, math.ceil(self.room / experts)) if self.room else 1.0

    def share(self, experts: int) -> float:
        """Return the work of so many experts, by that of all."""
        return self.rows(experts) / self.rows(self.group.num_units)


def items_of(paths: Iterable[str], layers: Iterable[Routed]) -> dict[str, tuple[Routed, int]]:
    """Return the parameters, among `paths`, of experts that are items of a list: of which layer, and which expert."""
    lists = {layer.experts: layer for layer in layers if not layer.stacked}
    return {
        path: (lists[holder], index) for path in paths for holder, index in _places(path) if holder in lists
    }


def routed(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    applications: Mapping[str, int],
    lengths: Mapping[str, int],
) -> list[Routed]:
    """Return the work of the layers whose experts are groups.

    Args:
        model: The model.
        groups: Its groups.
        applications: How often each weight is applied in one call, by parameter path.
        lengths: Tokens of one sample that a linear layer sees, by its path.
    """
    found = []
    for group in groups:
        layer = model.get_submodule(group.module)
        mixture = mixture_at(group.module, layer) if group.kind == EXPERTS else None
        if mixture is None:
            continue
        room = getattr(layer, mixture.capacity) * lengths.get(mixture.router, 0) if mixture.capacity else 0.0
        times = 0 if mixture.stacked else _applied_to_all(mixture.outputs, applications)
        found.append(Routed(group, mixture.experts, mixture.stacked, times, room))
    return found


def _applied_to_all(experts: Iterable[str], applications: Mapping[str, int]) -> int:
    """Return how often all experts of a list together are applied: each as often as its weights are."""
    by_expert = dict.fromkeys(experts, 0)
    for path, times in applications.items():
        for item in (f"{holder}.{index}" for holder, index in _places(path)):
            if item in by_expert:
                by_expert[item] = max(by_expert[item], times)
    return sum(by_expert.values())


def _places(path: str) -> Iterator[tuple[str, int]]:
    """Yield the lists that a path goes through, and which item of them."""
    names = path.split(".")
    for end, name in enumerate(names):
        if end and name.isdigit():
            yield ".".join(names[:end]), int(name)
