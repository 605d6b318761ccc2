"""What the names and the shapes of modules say: diffusers spells the same parts in many ways."""

from __future__ import annotations

import re
from functools import cache

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
"""Layers whose weight has channels out along dimension 0, and channels in along dimension 1."""


@cache
def words(name: str) -> frozenset[str]:
    """Return the words of an attribute's name: ``to_q_t`` says to, q, t; ``proj_out`` says proj, out."""
    return frozenset(word for word in re.split(r"[_.\d]+", name.lower()) if word)


def is_norm(module: nn.Module) -> bool:
    """Tell by its class's name whether a module normalises."""
    return any(word in type(module).__name__.lower() for word in ("norm", "grn"))


def layer_at(module: nn.Module, name: str) -> nn.Module | None:
    """Return the module at the dotted path `name` below `module`; None if there is none, or for an empty name."""
    found: nn.Module | None = module
    for part in name.split("."):
        found = None if found is None else found._modules.get(part)
    return found


def in_list(path: str) -> bool:
    """Tell whether a module is part of a list: of the blocks, that is, and not of what embeds timesteps and texts."""
    return any(part.isdigit() for part in path.split("."))
