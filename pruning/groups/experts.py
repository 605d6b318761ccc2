"""Hidden channels of experts whose weights are stacked: one parameter holds a matrix for each expert.

A unit is the channel of one index in all experts of a stack, since they share their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pruning.groups.base import handler
from pruning.groups.feed_forward import FFN_CHANNELS, hidden_channels
from pruning.groups.words import in_list
from pruning.types import ParamSlice, PrunableGroup

SIZES = ("moe_intermediate_dim", "intermediate_size", "hidden_dim")


@handler("experts", FFN_CHANNELS)
def stacked_experts(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the hidden channels of a stack: ``gate_up_proj`` (E, H, 2I) and ``down_proj`` (E, I, H)."""
    own = dict(module.named_parameters(recurse=False))
    up, down = own.get("gate_up_proj"), own.get("down_proj")
    if up is None or down is None or up.ndim != 3 or down.ndim != 3 or not in_list(path):
        return
    experts, channels, _ = down.shape
    if channels < 2 or up.shape != (experts, down.shape[2], 2 * channels):
        return
    produced = [ParamSlice(f"{path}.gate_up_proj", 2, 1, offset) for offset in (0, channels)]
    consumed = ParamSlice(f"{path}.down_proj", 1, 1, stack=experts)
    sizes = [name for name in SIZES if getattr(module, name, None) == channels]
    yield hidden_channels(path, channels, produced, consumed, sizes)
