"""Hidden channels of blocks in which attention and feed-forward share one output projection.

In Flux and its relatives the block's ``proj_out`` reads the heads and after them the hidden channels: two groups, which
are column slices of one weight. Flux 2 shares the first projection too: queries, keys, values, then value and gate.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pruning.groups.attention import ATTENTION_HEADS
from pruning.groups.base import all_rows, columns, handler, rows
from pruning.groups.feed_forward import FFN_CHANNELS, hidden_channels
from pruning.groups.words import layer_at
from pruning.types import ModuleAttribute, ParamSlice, PrunableGroup

SIZES = ("mlp_hidden_dim", "mlp_dim")
"""Attributes under which such blocks keep the number of hidden channels."""


@handler("single_stream", FFN_CHANNELS)
def single_stream_channels(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the hidden channels of a block whose ``proj_out`` reads the heads first."""
    up, down = getattr(module, "proj_mlp", None), getattr(module, "proj_out", None)
    if not (isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
        return
    queries = [
        layer for child in module.children() if isinstance(layer := layer_at(child, "to_q"), nn.Linear)
    ]
    width = queries[0].out_features if queries else 0
    channels = down.in_features - width
    if not width or channels < 2 or up.out_features % channels:
        return
    sizes = [name for name in SIZES if getattr(module, name, None) == channels]
    produced = all_rows(f"{path}.proj_mlp", up, channels)
    yield hidden_channels(path, channels, produced, columns(f"{path}.proj_out", 1, width), sizes)


@handler("parallel_attention", ATTENTION_HEADS, FFN_CHANNELS)
def parallel_attention(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield heads and hidden channels of an attention module that is a whole single-stream block."""
    first, last = getattr(module, "to_qkv_mlp_proj", None), getattr(module, "to_out", None)
    heads, hidden = getattr(module, "heads", None), getattr(module, "mlp_hidden_dim", None)
    if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear)):
        return
    if type(heads) is not int or type(hidden) is not int or heads < 1:
        return
    width = last.in_features - hidden
    size = width // heads

    def parts_of(offsets: range, unit_size: int) -> list[ParamSlice]:
        return [
            part for offset in offsets for part in rows(f"{path}.to_qkv_mlp_proj", first, unit_size, offset)
        ]

    if heads > 1:
        yield PrunableGroup(
            name=f"{path}:attention_heads",
            module=path,
            kind=ATTENTION_HEADS,
            num_units=heads,
            unit_size=size,
            produced_by=tuple(parts_of(range(0, 3 * width, width), size)),
            consumed_by=(columns(f"{path}.to_out", size),),
            attributes=(ModuleAttribute(path, "heads", 1), ModuleAttribute(path, "inner_dim", size)),
        )
    if hidden > 1:
        yield hidden_channels(
            path,
            hidden,
            parts_of(range(3 * width, first.out_features, hidden), 1),
            columns(f"{path}.to_out", 1, width),
            ["mlp_hidden_dim"],
        )
