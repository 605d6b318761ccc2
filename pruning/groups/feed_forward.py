"""Hidden channels of feed-forward layers, gated or not, linear or convolutional, whatever their parts are called.

In a gated layer the value row and the gate row of a channel go together, so that asking for 25 % removes 25 %. What
stands between the two projections is cut with them: depthwise convolutions, and norms over the hidden channels.

A further spelling is one line of `SPELLINGS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn

from pruning.groups.base import all_rows, columns, handler, kind
from pruning.groups.words import LAYERS, in_list, is_norm, layer_at
from pruning.types import ModuleAttribute, ParamSlice, PrunableGroup

FFN_CHANNELS = kind("ffn_channels", "Hidden channels of feed-forward layers.")


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
    Spelling(("up_proj",), "down_proj"),
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


@handler("feed_forward", FFN_CHANNELS)
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
    if len(names) != 2:
        return None
    order = list(module._modules)
    inner = order[order.index(names[0]) + 1 : order.index(names[1])]
    mixing = [
        name for name in inner if is_norm(module.get_submodule(name)) or "softmax" in _class(module, name)
    ]
    with_weights = [name for name in inner if next(module.get_submodule(name).parameters(), None) is not None]
    if not {*mixing} <= {*with_weights}:
        return None  # it mixes channels, and nothing says which
    return Spelling((names[0],), names[1], tuple(with_weights), beside=True)


def _class(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name)).__name__.lower()


def _group(path: str, module: nn.Module, spelling: Spelling) -> PrunableGroup | None:
    if layer_at(module, spelling.down) is None:
        return None
    parts = [layer_at(module, name) for name in (*spelling.up, spelling.down)]
    if not all(isinstance(part, LAYERS) and getattr(part, "groups", 1) == 1 for part in parts):
        return None
    if not spelling.beside and not _alone(module, spelling):
        return None
    ups, down = [cast(nn.Linear, part) for part in parts[:-1]], cast(nn.Linear, parts[-1])
    channels = down.weight.shape[1]
    if channels < 2:
        return None
    produced = []
    for name, up in zip(spelling.up, ups, strict=True):
        if len(up.weight) % channels:
            return None
        produced += all_rows(f"{path}.{name}", up, channels)
    for name in spelling.between:
        layer = layer_at(module, name)
        if layer is None:
            continue
        found = _between(f"{path}.{name}", layer, channels)
        if found is None:
            return None
        produced += found
    return hidden_channels(path, channels, produced, columns(f"{path}.{spelling.down}", 1))


def hidden_channels(
    path: str,
    channels: int,
    produced: Iterable[ParamSlice],
    consumed: ParamSlice,
    sizes: Iterable[str] = (),
) -> PrunableGroup:
    """Return the group of a module's hidden channels; `sizes` are its attributes that say how many there are."""
    return PrunableGroup(
        name=f"{path}:{FFN_CHANNELS}",
        module=path,
        kind=FFN_CHANNELS,
        num_units=channels,
        unit_size=1,
        produced_by=tuple(produced),
        consumed_by=(consumed,),
        attributes=tuple(ModuleAttribute(path, name, 1) for name in sizes),
    )


def _alone(module: nn.Module, spelling: Spelling) -> bool:
    """Tell whether a module holds nothing with parameters besides its parts and norms of its input."""
    own = {name.split(".")[0] for name in (*spelling.up, spelling.down, *spelling.between)}
    return not [name for name, _ in module.named_parameters(recurse=False)] and all(
        name in own or is_norm(child) or next(child.parameters(), None) is None
        for name, child in module.named_children()
    )


def _between(path: str, layer: nn.Module, channels: int) -> list[ParamSlice] | None:
    """Return the slices of a depthwise convolution or a norm over the hidden channels; None for anything else."""
    if isinstance(layer, LAYERS):
        depthwise = getattr(layer, "groups", 1) == len(layer.weight) and layer.weight.shape[1] == 1
        return all_rows(path, layer, channels) if depthwise else None
    return norm_slices(path, layer, channels)


def norm_slices(path: str, norm: nn.Module, channels: int) -> list[ParamSlice] | None:
    """Return the slices of a norm's parameters, each along its one dimension of the channels; None if it is no norm."""
    if not is_norm(norm) or getattr(norm, "num_groups", 1) > 1:
        return None
    found = []
    for name, parameter in norm.named_parameters():
        dims = [dim for dim, size in enumerate(parameter.shape) if size == channels]
        if len(dims) != 1 or parameter.numel() != channels:
            return None
        found.append(ParamSlice(f"{path}.{name}", dims[0], 1))
    return found
