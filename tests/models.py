"""One table of tiny random models, a row a family variant; the master tests run over all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from pruning import example_call


def randomise(model: nn.Module, seed: int = 0, gain: float = 0.5) -> nn.Module:
    """Give every parameter non-trivial values: zero-initialised gates would hide mistakes.

    `gain` is how much a layer passes on of what it is given.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = gain / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(noise * scale)
            if name.endswith("weight") and parameter.ndim == 1:
                parameter.add_(1.0)
    return model.eval()


def dit(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 1,
        "out_channels": 1,
        "num_layers": 3,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
    }
    return randomise(DiTTransformer2DModel(**{**config, **changes}))


def unet2d(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return randomise(UNet2DModel(**{**config, **changes}))


def unet2d_condition(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 4,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return randomise(UNet2DConditionModel(**{**config, **changes}))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dit": dit,
    "dit-learned-sigma": lambda: dit(out_channels=2, attention_bias=False),
    "dit-geglu": lambda: dit(activation_fn="geglu"),
    "unet2d": unet2d,
    "unet2d-classes": lambda: unet2d(num_class_embeds=5, resnet_time_scale_shift="scale_shift"),
    "unet2d-single-head": lambda: unet2d(attention_head_dim=None),
    "unet2d-resnet-resampling": lambda: unet2d(
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
    ),
    "unet2d-condition": unet2d_condition,
    "unet2d-condition-deep": lambda: unet2d_condition(
        transformer_layers_per_block=2, use_linear_projection=True, addition_embed_type=None
    ),
    "unet2d-condition-added-kv": lambda: unet2d_condition(
        down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
        encoder_hid_dim=24,
        encoder_hid_dim_type="text_proj",
    ),
}


def call(model: nn.Module, batch_size: int = 2, seed: int = 1) -> dict[str, Any]:
    """Return call arguments for one of `MODELS`."""
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(model, (DiTTransformer2DModel, UNet2DModel, UNet2DConditionModel)):
        return example_call(model, batch_size)
    config = model.config
    size = (batch_size, config.in_channels, config.sample_size, config.sample_size)
    arguments: dict[str, Any] = {"timestep": torch.tensor([10, 700] * batch_size)[:batch_size]}
    sample = torch.randn(size, generator=generator)
    if isinstance(model, DiTTransformer2DModel):
        labels = torch.randint(0, config.num_embeds_ada_norm, (batch_size,), generator=generator)
        return {**arguments, "hidden_states": sample, "class_labels": labels}
    arguments["sample"] = sample
    if isinstance(model, UNet2DConditionModel):
        arguments["encoder_hidden_states"] = torch.randn(batch_size, 7, 24, generator=generator)
    elif config.num_class_embeds:
        arguments["class_labels"] = torch.arange(batch_size) % config.num_class_embeds
    return arguments


@torch.no_grad()
def run(model: nn.Module, seed: int = 1) -> torch.Tensor:
    """Return the model's output on fixed inputs, shape ``(2, C, H, W)``."""
    return model(**call(model, seed=seed), return_dict=False)[0]
