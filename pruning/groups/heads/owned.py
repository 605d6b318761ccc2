"""What belongs to the heads of an attention module: rows of its layers, sizes on it, entries of its arguments."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruning.groups.base import rows
from pruning.groups.heads.exceptions import PER_HEAD_INPUTS, PER_HEAD_MASKS, RESHAPED_TO
from pruning.groups.heads.parts import QUERY, Parts
from pruning.groups.heads.sizes import HEADS, Sizes
from pruning.groups.words import words
from pruning.types import ModuleAttribute, NarrowedInput, ParamSlice

KEY_HEADS = ("kv_heads", "num_kv_heads", "num_key_value_heads", "n_kv_heads")
QUERY_WIDTHS = ("inner_dim", "channels")
KEY_WIDTHS = ("inner_kv_dim", "kv_inner_dim")
SLICED = ("sliceable_head_dim",)


def owned_by(
    path: str, module: nn.Module, parts: Parts, sizes: Sizes
) -> tuple[list[ParamSlice], list[ModuleAttribute]]:
    """Return the rows that belong to the heads of a module, and the sizes that fall with them."""
    one_key = sizes.key_heads == 1
    produced, attributes = [], []

    def rows_of(name: str, layer: nn.Linear, width: int, size: int) -> list[ParamSlice]:
        offsets = range(0, layer.out_features, width)
        return [part for offset in offsets for part in rows(f"{path}.{name}", layer, size, offset)]

    for name, layer in (parts.queries | parts.fused).items():
        produced += rows_of(name, layer, sizes.width, sizes.unit)
    for name, layer in parts.keys.items():
        produced += [] if one_key else rows_of(name, layer, sizes.key_width, sizes.head_dim)
    for name, layer in parts.gates.items():
        size = sizes.unit if layer.out_features == sizes.width else sizes.per_unit
        produced += rows_of(name, layer, layer.out_features, size)
    for name, scale in parts.scales.items():
        query = bool(words(name) & QUERY)
        if len(scale) > 1 and (query or not one_key):
            produced.append(ParamSlice(f"{path}.{name}", 0, sizes.per_unit if query else 1))
    for name, norm in parts.norms.items():
        query = bool(words(name) & QUERY)
        if _norm_width(norm) != (sizes.width if query else sizes.key_width) or (one_key and not query):
            continue  # of one head
        size = sizes.unit if query else sizes.head_dim
        produced += rows(f"{path}.{name}", norm, size)
        weightless = getattr(norm, "weight", None) is None
        if weightless and isinstance(getattr(norm, "normalized_shape", None), tuple):
            attributes.append(ModuleAttribute(f"{path}.{name}", "normalized_shape", size))
    return produced, attributes + _sizes_on(path, module, sizes)


def _sizes_on(path: str, module: nn.Module, sizes: Sizes) -> list[ModuleAttribute]:
    """Return the numbers on a module that say how many heads it has, and how wide they are together."""
    named = {HEADS: sizes.per_unit, SLICED: sizes.per_unit}
    if sizes.key_heads > 1:
        named[KEY_HEADS] = 1
    named[QUERY_WIDTHS] = sizes.unit
    if sizes.key_heads > 1:
        named[KEY_WIDTHS] = sizes.head_dim
    if reshaped := RESHAPED_TO.get(type(getattr(module, "processor", None)).__name__):
        named[reshaped,] = sizes.unit
    return [
        ModuleAttribute(path, name, size)
        for names, size in named.items()
        for name in names
        if type(getattr(module, name, None)) is int
    ]


def _norm_width(norm: nn.Module) -> int | None:
    """Return over how many channels a norm goes."""
    weight: Any = getattr(norm, "weight", None)
    if weight is not None:
        return len(weight)
    shape: Any = getattr(norm, "normalized_shape", getattr(norm, "dim", None))
    return shape[-1] if isinstance(shape, tuple) and shape else None


def narrowed_of(module: nn.Module, model: nn.Module, sizes: Sizes) -> tuple[NarrowedInput, ...]:
    """Return the arguments of a module that keep their entries for all heads."""
    found = []
    for argument, place in PER_HEAD_INPUTS.get(type(module).__name__, {}).items():
        axis, per_head = place(module, sizes.head_dim)
        found.append(NarrowedInput(argument, axis, per_head * sizes.per_unit))
    if type(model).__name__ in PER_HEAD_MASKS:
        found.append(NarrowedInput("attention_mask", 0, sizes.per_unit))
    return tuple(found)
