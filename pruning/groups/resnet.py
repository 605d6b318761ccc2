"""Inner channels of ResNet blocks, in whole norm groups.

The unit is one group of the norm that the channels go through: with whole groups the cut model equals the masked one,
because the group statistics of the kept channels do not change; ``num_groups`` falls with the units. Where one group
holds all channels, the unit is a channel, and the norm goes over those that stay.

A further kind of block is one line of `WIDTHS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from pruning.groups.base import all_rows, columns, handler, kind, recorded, rows
from pruning.groups.words import CONVOLUTIONS, layer_at
from pruning.types import ModuleAttribute, PrunableGroup

RESNET_CHANNELS = kind("resnet_channels", "Inner channels of ResNet blocks, in whole norm groups.")


@dataclass(frozen=True)
class Width:
    """Channels between two convolutions, by paths below the block.

    Attributes:
        made: The convolution that makes them.
        norm: The norm that they go through: a GroupNorm, or one whose scale and shift come from an embedding.
        read: The convolution that reads them.
        embedding: A linear layer that adds to them, or scales and shifts them.
        through: A depthwise convolution between.
    """

    made: str
    norm: str
    read: str
    embedding: str = ""
    through: str = ""


WIDTHS = (
    Width("conv1", "norm2", "conv2", embedding="time_emb_proj"),  # in two dimensions, and over time
    Width("conv1.pointwise", "norm2", "conv2.pointwise", "time_emb_proj", through="conv2.depthwise"),
    *(Width(f"conv{k}.{last}", f"conv{k + 1}.0", f"conv{k + 1}.3") for k, last in ((1, 2), (2, 3), (3, 3))),
    *(
        Width(
            f"resnet_blocks.{k}.projection",
            f"resnet_blocks.{k + 1}.group_norm",
            f"resnet_blocks.{k + 1}.projection",
        )
        for k in range(3)
    ),
    Width("conv_1", "group_norm_1", "conv_2"),
    Width("conv_in.conv1d", "conv_in.group_norm", "conv_out.conv1d", embedding="time_emb"),
)

RESAMPLERS = ("down_sample", "up_sample")
"""What Kandinsky 3 puts after the convolution that makes channels, or before the one that reads them."""


@handler("resnet", RESNET_CHANNELS)
def resnet_channels(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the inner channels of a ResNet block."""
    found = [group for width in WIDTHS if (group := _group(path, module, model, width))]
    for index, group in enumerate(found):
        name = f"{path}:resnet_channels" + (f".{index + 1}" if len(found) > 1 else "")
        yield PrunableGroup(name=name, module=path, kind=RESNET_CHANNELS, **group)


def _group(path: str, module: nn.Module, model: nn.Module, width: Width) -> dict[str, Any] | None:
    if layer_at(module, width.norm) is None:
        return None
    made, norm, read = (cast(Any, layer_at(module, name)) for name in (width.made, width.norm, width.read))
    plain = all(isinstance(conv, CONVOLUTIONS) and conv.groups == 1 for conv in (made, read))
    if not plain or _resampled(module, width):
        return None
    channels = len(made.weight)
    if read.weight.shape[1] != channels:
        return None
    normed = _norm(f"{path}.{width.norm}", norm, channels)
    if normed is None:
        return None
    groups, slices, attributes = normed
    if groups == 1 and any(
        "num_groups" in recorded(model, a.module).get("attributes", {}) for a in attributes
    ):
        return None  # a single group is left of it
    units = groups if groups > 1 else channels
    unit = channels // units
    produced = rows(f"{path}.{width.made}", made, unit)
    for layer_path, layer in slices:
        produced += all_rows(layer_path, layer, channels, unit)
    if isinstance(embedding := layer_at(module, width.embedding), nn.Linear):
        produced += all_rows(f"{path}.{width.embedding}", embedding, channels, unit)
    if width.through:
        between = layer_at(module, width.through)
        if not isinstance(between, CONVOLUTIONS) or between.groups != channels:
            return None
        produced += rows(f"{path}.{width.through}", between, unit)
    return {
        "num_units": units,
        "unit_size": unit,
        "produced_by": tuple(produced),
        "consumed_by": (columns(f"{path}.{width.read}", unit),),
        "attributes": attributes if groups > 1 else (),
    }


def _resampled(module: nn.Module, width: Width) -> bool:
    """Tell whether something with weights stands beside one of the two convolutions, which would read the channels."""
    beside = zip((width.made, width.read), RESAMPLERS, strict=True)
    parts = [layer_at(module, f"{name.rpartition('.')[0]}.{resampler}") for name, resampler in beside]
    return any(part is not None and next(part.parameters(), None) is not None for part in parts)


def _norm(
    path: str, norm: Any, channels: int
) -> tuple[int, list[tuple[str, nn.Module]], tuple[ModuleAttribute, ...]] | None:
    """Return a norm's number of groups, the layers with rows for its channels, and the sizes that fall with a group."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups, [(path, norm)], (ModuleAttribute(path, "num_groups", 1),)
    groups = getattr(norm, "num_groups", None)
    if type(groups) is int and isinstance(getattr(norm, "linear", None), nn.Linear):  # AdaGroupNorm
        if groups < 2:
            return None
        return groups, [(f"{path}.linear", norm.linear)], (ModuleAttribute(path, "num_groups", 1),)
    inner, context = getattr(norm, "norm", None), getattr(norm, "context_mlp", None)
    if isinstance(inner, nn.GroupNorm) and isinstance(context, nn.Sequential) and inner.num_groups > 1:
        unit = channels // inner.num_groups
        sizes = (
            ModuleAttribute(f"{path}.norm", "num_groups", 1),
            ModuleAttribute(f"{path}.norm", "num_channels", unit),
        )
        return inner.num_groups, [(f"{path}.context_mlp.1", context[1])], sizes
    return None
