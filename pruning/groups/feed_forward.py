"""Hidden channels of ``diffusers.models.attention.FeedForward``: GELU, and the gated GEGLU and SwiGLU.

In a gated layer the value row and the gate row of a channel go together, so that asking for 25 % removes 25 %.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.attention import FeedForward
from torch import nn

from pruning.groups.base import columns, handler, rows
from pruning.types import PrunableGroup


@handler("feed_forward")
def ffn_channels(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the hidden channels of a feed-forward module."""
    if not isinstance(module, FeedForward):
        return
    activation, down = module.net[0], module.net[2]
    up = getattr(activation, "proj", None)
    if not (isinstance(up, nn.Linear) and isinstance(down, nn.Linear)):
        return
    channels, produced_rows = down.in_features, up.out_features
    if produced_rows % channels or channels < 2:
        return
    produced = [
        part
        for offset in range(0, produced_rows, channels)
        for part in rows(f"{path}.net.0.proj", up, 1, offset)
    ]
    yield PrunableGroup(
        name=f"{path}:ffn_channels",
        module=path,
        kind="ffn_channels",
        num_units=channels,
        unit_size=1,
        produced_by=tuple(produced),
        consumed_by=(columns(f"{path}.net.2", 1),),
    )
