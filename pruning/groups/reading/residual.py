"""Is a block a residual update? What it returns when all its parameters are zero says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pruning.groups.reading.interpreter import Reader
from pruning.groups.reading.structure import forward_names
from pruning.groups.reading.values import Atom, Items, Known, Sum, Value, is_zero, straight
from pruning.removal import BlockRemoval, Handed


def residual(
    block: nn.Module,
    arguments: Mapping[str, Value],
    signatures: Mapping[int, int] | None = None,
    memo: dict[Any, Value] | None = None,
) -> BlockRemoval | str:
    """Return what is left of a block whose parameters are all zero, or why that is not its input.

    Args:
        block: The block.
        arguments: How it is called; see `pruning.groups.reading.callers.arguments_of`.
        signatures: As of `Reader`.
        memo: As of `Reader`.
    """
    value = straight(Reader(block, zeros=True, signatures=signatures, memo=memo).run(arguments))
    parts = value.items if isinstance(value, Items) else (value,)
    if isinstance(value, Items) and value.kind not in (tuple, list):
        return f"it returns a {value.kind.__name__}"
    names = forward_names(block)
    handed = [_handed(part, names) for part in parts]
    streams = [part for part in handed if part is not None and part.arguments]
    if not streams:
        return "it returns nothing that is one of its arguments plus an update"
    for place, part in enumerate(parts):
        if is_zero(part):  # an update that is returned beside the stream
            handed[place] = replace(streams[0], factor=0.0)
        elif handed[place] is None:
            return f"value {place + 1} of {len(parts)} that it returns is not one of its arguments plus an update"
    returns = [part for part in handed if part is not None]
    form = value.kind.__name__ if isinstance(value, Items) else "tensor"
    return BlockRemoval(tuple(returns), form)


def first_channels(block: nn.Module, arguments: Mapping[str, Value]) -> BlockRemoval | None:
    """Return how a block leaves that changes the number of channels, and does so for its shortcut too, if it does."""
    if not any("shortcut" in path.rpartition(".")[2] for path, _ in block.named_modules()):
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
    split = [_stream_and_masks(atoms, names) for atoms, _ in value.terms]
    masks = {mask for _, mask in split}
    if len(factors) != 1 or len(masks) != 1 or not all(stream for stream, _ in split):
        return None
    given = sorted((names.index(name), name) for name, _ in split)
    return Handed(
        tuple(name for _, name in given),
        tuple(place for place, _ in given),
        factors.pop(),
        tuple((name, names.index(name)) for name in sorted(masks.pop())),
    )


def _stream_and_masks(atoms: Sequence[Atom], names: Sequence[str]) -> tuple[str, frozenset[str]]:
    """Return the one argument in a product, and those that stand in it with an axis added; no name for others."""
    streams = [atom[1] for atom in atoms if atom[0] == "arg"]
    masks = [
        atom[1][1] for atom in atoms if atom[0] == "view" and atom[1][0] == "arg" and "mask" in atom[1][1]
    ]
    whole = len(streams) == 1 and len(streams) + len(masks) == len(atoms)
    return (streams[0] if whole and streams[0] in names else ""), frozenset(masks)
