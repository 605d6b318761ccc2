"""Where attention happens, told by attribute names and never by class, and which of it belongs to a group."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pruning.types import PrunableGroup


def is_attention(module: nn.Module) -> bool:
    """Tell whether `module` has the projections of an attention module (``to_q`` and ``to_k``, or fused)."""
    names = dict(module.named_children())
    return ("to_q" in names and "to_k" in names) or "to_qkv" in names


def weighting_site(model: nn.Module, group: PrunableGroup) -> str | None:
    """Return the attention module whose sinks weight the rows of `group`; None where omega = 1.

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


def measured_sites(model: nn.Module, groups: Iterable[PrunableGroup]) -> dict[str, str]:
    """Return the group under whose name each attention module's statistics are kept, by module path.

    A head group has its module. Single-head attention has no head group: there the block group of the module
    itself stands for it.
    """
    groups = list(groups)
    sites = {g.module: g.name for g in groups if g.kind == "attention_heads"}
    for group in groups:
        if (
            group.kind == "blocks"
            and group.module not in sites
            and is_attention(model.get_submodule(group.module))
        ):
            sites[group.module] = group.name
    return sites
