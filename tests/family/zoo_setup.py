"""What the tests over all classes share."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pruning.groups import KINDS, discover
from pruning.groups.modulation import break_even, modulation_layers, repeated
from pruning.types import PrunableGroup
from tests.zoo import ZOO, build, run

FIRST = list({tiny.cls: name for name, tiny in reversed(ZOO.items())}.values())[::-1]
"""One tiny model of every class, for what need not be seen in every variant."""


@cache
def model_of(name: str) -> nn.Module:
    """Return a tiny model, which no test may change."""
    return build(ZOO[name])


@cache
def built(name: str) -> tuple[nn.Module, Tensor]:
    """Return a tiny model, which no test may change, and its output."""
    return model_of(name), run(ZOO[name], model_of(name))


def widths(model: nn.Module) -> list[PrunableGroup]:
    """Return all groups of units: heads, hidden channels, inner channels, experts."""
    return list(discover(model, {*KINDS} - {"blocks"}))


def half(groups: Iterable[PrunableGroup], seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Keep a random half of the units of each group, at least as many as must stay."""
    draw = random.Random(seed)
    return {
        g.name: tuple(sorted(draw.sample(range(g.num_units), max(g.min_units, g.num_units // 2))))
        for g in groups
    }


def smaller(model: nn.Module) -> dict[str, Any]:
    """Return what a plan says of weights in a smaller form: every modulation layer, every repeated embedder."""
    groups = widths(model)
    most = {
        group.module: break_even(model.get_submodule(group.module))
        for group in modulation_layers(model, groups)
    }
    ranks = {path: max(1, rank // 2) for path, rank in most.items() if rank}
    return {"ranks": ranks, "shared": tuple(repeated(model, groups))}


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value or 1."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Assert that two outputs are the same but for rounding."""
    assert torch.isfinite(found).all()
    assert error(found, expected) <= tolerance
