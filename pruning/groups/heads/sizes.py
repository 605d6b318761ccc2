"""How many heads an attention module has and how wide they are, and why some cannot lose any."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pruning.groups.heads.exceptions import ONE_STREAM, RIGID
from pruning.groups.heads.parts import QUERY, Parts
from pruning.groups.words import words

HEADS = ("heads", "num_heads", "num_attention_heads", "n_heads")
"""Attributes that say how many heads a module has."""


@dataclass(frozen=True)
class Sizes:
    """Heads, key/value heads, and rows of a head."""

    heads: int
    key_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Rows of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Rows of all key heads."""
        return self.key_heads * self.head_dim

    @property
    def units(self) -> int:
        """Key heads, or query heads where there is a single key head."""
        return self.key_heads if self.key_heads > 1 else self.heads

    @property
    def per_unit(self) -> int:
        """Query heads of a unit."""
        return self.heads // self.units

    @property
    def unit(self) -> int:
        """Rows of the query heads of a unit."""
        return self.per_unit * self.head_dim


def sizes_of(module: nn.Module, parts: Parts, consumed: dict[str, nn.Linear]) -> Sizes | str:
    """Return the sizes of a module whose heads the layers `consumed` read, or why it has no heads that can go."""
    heads = next((n for name in HEADS if type(n := getattr(module, name, None)) is int), None)
    if heads is None or heads < 1:
        return "it does not say how many heads it has"
    if parts.outs:
        width = next(iter(consumed.values())).in_features
    else:
        width = next(iter((parts.queries or parts.fused).values())).out_features
    if width % heads:
        return f"{width} channels are no multiple of {heads} heads"
    head_dim = width // heads
    key_width = next((layer.out_features for layer in parts.keys.values()), width)
    key_heads = key_width // head_dim if key_width < width else heads
    if key_width % head_dim or heads % key_heads:
        return f"{key_width} key channels do not fit to {heads} heads of {head_dim}"
    return Sizes(heads, key_heads, head_dim) if heads > 1 else "it has a single head"


def fault_of(module: nn.Module, parts: Parts, sizes: Sizes) -> str:
    """Say why heads of a module cannot go, though its parts are known."""
    processor = type(getattr(module, "processor", None)).__name__
    if processor in RIGID:
        return RIGID[processor]
    if processor in ONE_STREAM and not any("add" in words(name) for name in parts.queries):
        return ONE_STREAM[processor]
    if getattr(module, "fused_projections", False):
        return "its projections are fused; call unfuse_qkv_projections() first"
    if parts.unknown:
        return f"what {parts.unknown[0]!r} does to the heads is not known"
    for name, layer in [*parts.queries.items(), *parts.fused.items()]:
        if layer.out_features % sizes.width:
            return f"{name!r} has {layer.out_features} rows, no multiple of {sizes.width}"
    if parts.fused and sizes.key_heads != sizes.heads:
        return "its fused projection has fewer key than query heads"
    for name, layer in parts.keys.items():
        if layer.out_features % sizes.key_width:
            return f"{name!r} has {layer.out_features} rows, no multiple of {sizes.key_width}"
    if len({layer.out_features for layer in parts.keys.values()}) > 1 and sizes.key_heads != sizes.heads:
        return "its key and value projections differ in their width"
    for name, scale in parts.scales.items():
        if len(scale) not in (1, sizes.heads if words(name) & QUERY else sizes.key_heads):
            return f"{name!r} has {len(scale)} numbers, which are not one for each head"
    for name, layer in parts.gates.items():
        if layer.out_features not in (sizes.width, sizes.heads):
            return f"{name!r} has {layer.out_features} rows, which are neither of heads nor of their channels"
    return ""
