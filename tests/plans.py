"""Random plans for the master and the property tests."""

from __future__ import annotations

import random
from collections.abc import Collection

from torch import nn

from pruning.groups import find_groups
from pruning.types import PruningPlan, config_hash


def random_plan(model: nn.Module, kinds: Collection[str], seed: int) -> PruningPlan:
    """Keep a random non-empty subset of the units of each group; remove about a third of the blocks."""
    draw = random.Random(seed)
    kept, removed = {}, []
    for group in find_groups(model, kinds):
        if group.kind == "blocks":
            removed += [group.module] if draw.random() < 0.34 else []
        else:
            units = draw.sample(range(group.num_units), draw.randint(group.min_units, group.num_units))
            kept[group.name] = tuple(sorted(units))
    return PruningPlan(kept=kept, removed_blocks=tuple(removed), base_hash=config_hash(model.config))
