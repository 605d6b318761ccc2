"""Where attention happens, seen from attribute names and never from classes, and which of it belongs to a group."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pruning.groups.heads.parts import Parts
from pruning.groups.words import words
from pruning.types import PrunableGroup


def is_attention(module: nn.Module) -> bool:
    """Tell whether `module` has the projections of an attention module, whose weights a softmax gives.

    Linear attention, which says so in its name or its processor's, forms no weights, so nothing can be seen of it.
    """
    names = type(module).__name__, type(getattr(module, "processor", None)).__name__
    return bool(Parts.of(module)) and not any("Linear" in name for name in names)


def weighting_site(model: nn.Module, group: PrunableGroup) -> str | None:
    """Return the attention module whose sinks weight the rows of `group`; None where all rows weigh the same.

    A head group has its own module; a feed-forward has the first self-attention beside it in its block, of those whose
    name shares a word with its own (``audio_ff``, ``audio_attn1``) if there are any.
    """
    if group.kind == "attention_heads":
        return group.module if is_attention(model.get_submodule(group.module)) else None
    if group.kind != "ffn_channels":
        return None
    parent, _, own = group.module.rpartition(".")
    beside = [
        name
        for name, child in model.get_submodule(parent).named_children()
        if is_attention(child) and not getattr(child, "is_cross_attention", False)
    ]
    beside.sort(key=lambda name: not words(name) & words(own))
    return (f"{parent}.{beside[0]}" if parent else beside[0]) if beside else None


def measured_sites(model: nn.Module, groups: Iterable[PrunableGroup]) -> list[str]:
    """Return the attention modules whose statistics are kept: those of head groups, and blocks that are one themselves.

    (Single-head attention has no head group; there the block stands for it.)
    """
    kept = [group for group in groups if group.kind in ("attention_heads", "blocks")]
    return list(dict.fromkeys(g.module for g in kept if is_attention(model.get_submodule(g.module))))
