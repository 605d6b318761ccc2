"""Whole residual blocks that can become the identity: input and output have the same shape.

A block whose submodules are read from outside it is not a group. Where the stock config counts the blocks of
a list (``num_layers``), a removed block is deleted from the list, else an identity takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from pruning.groups.base import handler
from pruning.types import BlockRemoval, PrunableGroup, config_of

# DiT's forward takes the conditioning of its output layer from the first block's norm.
READ_FROM_OUTSIDE = {"DiTTransformer2DModel": ("transformer_blocks.0",)}


@handler("blocks")
def blocks(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield `module` itself if it is a residual block that can become the identity."""
    if not path or path in READ_FROM_OUTSIDE.get(type(model).__name__, ()):
        return
    removal = _removal(path, module, model)
    if removal is not None:
        yield PrunableGroup(f"{path}:blocks", path, "blocks", num_units=1, unit_size=1, removal=removal)


def _removal(path: str, module: nn.Module, model: nn.Module) -> BlockRemoval | None:
    if isinstance(module, ResnetBlock2D):
        same_shape = module.in_channels == module.conv2.out_channels and module.conv_shortcut is None
        resamples = module.upsample is not None or module.downsample is not None
        return BlockRemoval() if same_shape and not resamples else None
    if isinstance(module, Attention):
        return BlockRemoval() if module.residual_connection and module.out_dim == module.query_dim else None
    if isinstance(module, Transformer2DModel):
        same_shape = module.is_input_continuous and module.out_channels == module.in_channels
        return BlockRemoval(returns_tuple=True) if same_shape else None
    if isinstance(module, BasicTransformerBlock):
        return _transformer_block(path, model)
    return None


def _transformer_block(path: str, model: nn.Module) -> BlockRemoval | None:
    """One of several blocks in a list; a lone block goes with the module around it."""
    parent, _, index = path.rpartition(".")
    siblings = model.get_submodule(parent)
    if not (index.isdigit() and isinstance(siblings, nn.ModuleList) and len(siblings) > 1):
        return None
    counted = parent == "transformer_blocks" and config_of(model).get("num_layers") == len(siblings)
    return BlockRemoval(config_field="num_layers" if counted else None)
