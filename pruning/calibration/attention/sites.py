"""Where attention happens, seen from attribute names and never from classes, and which of it belongs to a group."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pruning.types import PrunableGroup


def is_attention(module: nn.Module) -> bool:
    """Tell whether `module` has the projections of an attention module (``to_q`` and ``to_k``, or fused)."""
    names = dict(module.named_children())
    return ("to_q" in names and "to_k" in names) or "to_qkv" in names


def weighting_site(model: nn.Module, group: PrunableGroup) -> str | None:
    """Return the attention module whose sinks weight the rows of `group`; None where all rows weigh the same.

    A head group has its own module; a feed-forward has the first self-attention beside it in its block.
    """
    if group.kind == "attention_heads":
        return group.module
    if group.kind != "ffn_channels":
        return None
    parent = group.module.rpartition(".")[0]
    for name, child in model.get_submodule(parent).named_children():
        if is_attention(child) and not getattr(child, "is_cross_attention", False):
            return f"{parent}.{name}" if parent else name
    return None


def measured_sites(model: nn.Module, groups: Iterable[PrunableGroup]) -> list[str]:
    """Return the attention modules whose statistics are kept: those of head groups, and blocks that are one themselves.

    (Single-head attention has no head group; there the block stands for it.)
    """
    kept = [group for group in groups if group.kind in ("attention_heads", "blocks")]
    return list(dict.fromkeys(g.module for g in kept if is_attention(model.get_submodule(g.module))))
