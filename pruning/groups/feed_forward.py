"""Hidden channels of feed-forward layers, gated or not, linear or convolutional, whatever their parts are called.

In a gated layer the value row and the gate row of a channel go together, so that asking for 25 % removes 25 %. What
stands between the two projections is cut with them: depthwise convolutions, and norms over the hidden channels.

A further spelling is one line of `SPELLINGS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from pruning.groups.base import columns, handler, rows
from pruning.groups.words import in_list, is_norm
from pruning.types import ModuleAttribute, ParamSlice, PrunableGroup

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Spelling:
    """How the parts of a feed-forward layer are called, by paths below the module that holds them.

    Attributes:
        up: Projections to the hidden channels: value and gate, apart or in one.
        down: The projection that reads them.
        between: What comes in between and has parameters.
        beside: It may stand in a block, beside other things; else the module holds nothing but this.
    """

    up: tuple[str, ...]
    down: str
    between: tuple[str, ...] = ()
    beside: bool = False


SPELLINGS = (
    Spelling(("net.0.proj",), "net.2"),
    Spelling(("linear_1", "linear_3"), "linear_2"),
    Spelling(("linear_1", "linear_2"), "out_projection"),
    Spelling(("linear_in",), "linear_out"),
    Spelling(("w1", "w3"), "w2"),
    Spelling(("wi_0", "wi_1"), "wo"),
    Spelling(("fc1",), "fc2"),
    Spelling(("gate", "up"), "down"),
    Spelling(("gate_proj", "up_proj"), "down_proj", beside=True),
    Spelling(("gate_proj", "up_proj"), "linear_fc2"),
    Spelling(("gate_up_proj",), "down_proj"),
    Spelling(("proj", "gate_layer"), "out"),
    Spelling(("proj_in",), "proj_out"),
    Spelling(("in_layer",), "out_layer"),
    Spelling(("ff_in",), "ff_out", beside=True),
    Spelling(("swish_linear.0",), "linear_out"),
    Spelling(("conv_inverted",), "conv_point", ("conv_depth",), beside=True),
    Spelling(("inverted_conv.conv",), "point_conv.conv", ("depth_conv.conv",), beside=True),
    Spelling(("channelwise_linear_1",), "channelwise_linear_2", ("channelwise_norm",), beside=True),
    Spelling(("pwconv1",), "pwconv2", ("grn",), beside=True),
)


@handler("feed_forward")
def ffn_channels(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the hidden channels of a feed-forward layer that is part of a list of blocks."""
    if not in_list(path):
        return  # embeddings are built of the same parts
    spellings = [_sequence(module)] if isinstance(module, nn.Sequential) else SPELLINGS
    for spelling in spellings:
        if spelling and (group := _group(path, module, spelling)):
            yield group
            return


def _sequence(module: nn.Sequential) -> Spelling | None:
    """Read a sequence of two projections, and perhaps a norm, as a spelling."""
    names = [name for name, child in module.named_children() if isinstance(child, LAYERS)]
    others = [
        name
        for name, child in module.named_children()
        if name not in names and next(child.parameters(), None) is not None
    ]
    if len(names) != 2:
        return None
    order = list(dict(module.named_children()))
    first, last = (order.index(name) for name in names)
    between = tuple(name for name in others if first < order.index(name) < last)
    return Spelling((names[0],), names[1], between, beside=True)


def _group(path: str, module: nn.Module, spelling: Spelling) -> PrunableGroup | None:
    parts = [_layer(module, name) for name in (*spelling.up, spelling.down)]
    if not all(isinstance(part, LAYERS) and getattr(part, "groups", 1) == 1 for part in parts):
        return None
    if not spelling.beside and not _alone(module, spelling):
        return None
    *ups, down = parts
    channels = down.weight.shape[1]
    produced = []
    for name, up in zip(spelling.up, ups, strict=True):
        if len(up.weight) % channels:
            return None
        produced += _all_rows(f"{path}.{name}", up, channels)
    for name in spelling.between:
        layer = _layer(module, name)
        if layer is None:
            continue
        found = _between(f"{path}.{name}", layer, channels)
        if found is None:
            return None
        produced += found
    if channels < 2:
        return None
    return PrunableGroup(
        name=f"{path}:ffn_channels",
        module=path,
        kind="ffn_channels",
        num_units=channels,
        unit_size=1,
        produced_by=tuple(produced),
        consumed_by=(columns(f"{path}.{spelling.down}", 1),),
    )


def _layer(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        children = dict(module.named_children())
        if part not in children:
            return None
        module = children[part]
    return module


def _alone(module: nn.Module, spelling: Spelling) -> bool:
    """Tell whether a module holds nothing with parameters besides its parts and norms of its input."""
    own = {name.split(".")[0] for name in (*spelling.up, spelling.down, *spelling.between)}
    return not [name for name, _ in module.named_parameters(recurse=False)] and all(
        name in own or is_norm(child) or next(child.parameters(), None) is None
        for name, child in module.named_children()
    )


def _all_rows(path: str, layer: nn.Module, channels: int) -> list[ParamSlice]:
    """Return the rows of a projection for the hidden channels: once, or once for each of value and gate."""
    count = len(layer.weight)  # type: ignore[arg-type]
    return [part for offset in range(0, count, channels) for part in rows(path, layer, 1, offset)]


def _between(path: str, layer: nn.Module, channels: int) -> list[ParamSlice] | None:
    """Return the slices of a depthwise convolution or a norm over the hidden channels; None for anything else."""
    if isinstance(layer, LAYERS):
        depthwise = getattr(layer, "groups", 1) == len(layer.weight) and layer.weight.shape[1] == 1
        return _all_rows(path, layer, channels) if depthwise else None
    return norm_slices(path, layer, channels)


def norm_slices(path: str, norm: nn.Module, channels: int) -> list[ParamSlice] | None:
    """Return the slices of a norm's parameters, each along its one dimension of the channels; None if it is no norm."""
    if not is_norm(norm):
        return None
    found = []
    for name, parameter in norm.named_parameters():
        dims = [dim for dim, size in enumerate(parameter.shape) if size == channels]
        if len(dims) != 1 or parameter.numel() != channels:
            return None
        found.append(ParamSlice(f"{path}.{name}", dims[0], 1))
    return found


def single_stream(
    path: str, module: nn.Module, model: nn.Module, up: str, down: str, sizes: Sequence[str]
) -> Iterator[PrunableGroup]:
    """Yield hidden channels whose reader, `down`, reads the heads of attention first."""
    first, last = _layer(module, up), _layer(module, down)
    if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear)):
        return
    attention = next((child for child in module.children() if hasattr(child, "to_q")), None)
    width = attention.to_q.out_features if attention is not None else 0  # type: ignore[union-attr]
    channels = last.in_features - width
    if not width or channels < 2 or first.out_features % channels:
        return
    yield PrunableGroup(
        name=f"{path}:ffn_channels",
        module=path,
        kind="ffn_channels",
        num_units=channels,
        unit_size=1,
        produced_by=tuple(_all_rows(f"{path}.{up}", first, channels)),
        consumed_by=(columns(f"{path}.{down}", 1, width),),
        attributes=tuple(
            ModuleAttribute(path, name, 1) for name in sizes if getattr(module, name, None) == channels
        ),
    )
