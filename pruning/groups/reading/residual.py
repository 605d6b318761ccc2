"""Is a block a residual update? What it returns when all its parameters are zero says so."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pruning.groups.reading.interpreter import Reader
from pruning.groups.reading.structure import forward_names
from pruning.groups.reading.values import Items, Known, Sum, Value, straight
from pruning.removal import BlockRemoval, Handed


def residual(block: nn.Module, arguments: Mapping[str, Value]) -> BlockRemoval | str:
    """Return what is left of a block whose parameters are all zero, or why that is not its input.

    Args:
        block: The block.
        arguments: How it is called; see `pruning.groups.reading.callers.arguments_of`.
    """
    value = straight(Reader(block, zeros=True).run(arguments))
    parts = value.items if isinstance(value, Items) else (value,)
    if isinstance(value, Items) and value.kind not in (tuple, list):
        return f"it returns a {value.kind.__name__}"
    names = forward_names(block)
    returns = []
    for place, part in enumerate(parts):
        handed = _handed(part, names)
        if handed is None:
            which = f"value {place + 1} of {len(parts)} that it returns" if len(parts) > 1 else "what it returns"
            return f"{which} is not one of its arguments plus an update"
        returns.append(handed)
    if not any(part.arguments for part in returns):
        return "it returns nothing that it is given"
    form = value.kind.__name__ if isinstance(value, Items) else "tensor"
    return BlockRemoval(tuple(returns), form)


def first_channels(block: nn.Module, arguments: Mapping[str, Value]) -> BlockRemoval | None:
    """Return how a block leaves that changes the number of channels, and does so for its shortcut too, if it does."""
    if not any("shortcut" in name for name, _ in block.named_children()):
        return None
    value = straight(Reader(block, zeros=True, shortcut=True).run(arguments))
    if not isinstance(value, Sum) or len(value.terms) != 1:
        return None
    ((atoms, factor),) = value.terms
    if len(atoms) != 1 or atoms[0][0] != "first":
        return None
    _, name, channels = atoms[0]
    position = forward_names(block).index(name)
    return BlockRemoval((Handed((name,), (position,), factor),), channels=channels)


def _handed(value: Value, names: list[str]) -> Handed | None:
    if value == Known(None):
        return Handed((), ())
    if not isinstance(value, Sum) or not value.terms:
        return None
    factors = {factor for _, factor in value.terms}
    if len(factors) != 1 or not all(len(atoms) == 1 and atoms[0][0] == "arg" for atoms, _ in value.terms):
        return None
    given = sorted((names.index(atoms[0][1]), atoms[0][1]) for atoms, _ in value.terms)
    return Handed(tuple(name for _, name in given), tuple(place for place, _ in given), factors.pop())
