"""Inner channels of ResNet blocks, in whole norm groups.

The unit is one group of ``norm2``: with whole groups the cut model equals the masked one, because the group
statistics of the kept channels do not change; ``num_groups`` falls with the units.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.normalization import AdaGroupNorm
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import nn

from pruning.groups.base import columns, handler, rows
from pruning.types import ModuleAttribute, PrunableGroup


@handler("resnet")
def resnet_channels(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the inner channels of a ResNet block with at least two norm groups."""
    if not isinstance(module, (ResnetBlock2D, ResnetBlockCondNorm2D)):
        return
    norm, channels = module.norm2, module.conv1.out_channels
    if not isinstance(norm, (nn.GroupNorm, AdaGroupNorm)) or norm.num_groups < 2:
        return  # a spatial norm reads a second feature map
    unit = channels // norm.num_groups
    produced = rows(f"{path}.conv1", module.conv1, unit)
    if isinstance(norm, nn.GroupNorm):
        produced += rows(f"{path}.norm2", norm, unit)
        embedding, embedding_path = module.time_emb_proj, f"{path}.time_emb_proj"
    else:
        embedding, embedding_path = norm.linear, f"{path}.norm2.linear"
    if isinstance(embedding, nn.Linear):  # rows once for a shift, twice for scale and shift
        for offset in range(0, embedding.out_features, channels):
            produced += rows(embedding_path, embedding, unit, offset)
    yield PrunableGroup(
        name=f"{path}:resnet_channels",
        module=path,
        kind="resnet_channels",
        num_units=norm.num_groups,
        unit_size=unit,
        produced_by=tuple(produced),
        consumed_by=(columns(f"{path}.conv2", unit),),
        attributes=(ModuleAttribute(f"{path}.norm2", "num_groups", 1),),
    )
