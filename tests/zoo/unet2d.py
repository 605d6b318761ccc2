"""Unconditional and class-conditional pixel UNets."""

from __future__ import annotations

from typing import Any

from tests.zoo.base import BATCH, Draw, Tiny


def _config(
    down: list[str], up: list[str], channels: tuple[int, ...] = (16, 24, 36), **more: Any
) -> dict[str, Any]:
    return {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "norm_num_groups": 4,
        **more,
    }


def _call(draw: Draw) -> dict[str, Any]:
    return {"sample": draw.normal(BATCH, 3, 16, 16), "timestep": draw.times()}


def _labelled(draw: Draw) -> dict[str, Any]:
    return {**_call(draw), "class_labels": draw.integers(5, BATCH)}


def _two_times(draw: Draw) -> dict[str, Any]:
    return {**_call(draw), "timestep": draw.times().long(), "class_labels": draw.times(500.0).flip(0).long()}


MODELS = {
    # google/ddpm-cifar10-32: one head, padding 0, only some stages with attention.
    "unet2d": Tiny(
        "UNet2DModel",
        _config(
            ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
            ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
        ),
        _call,
    ),
    # CompVis/ldm-celebahq-256: several heads.
    "unet2d-heads": Tiny(
        "UNet2DModel",
        _config(
            ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
            channels=(16, 24, 32),
            attention_head_dim=8,
        ),
        _call,
    ),
    # openai/diffusers-cd_imagenet64_l2: residual samplers, time as scale and shift, class labels.
    "unet2d-consistency": Tiny(
        "UNet2DModel",
        _config(
            ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
            ["AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
            channels=(16, 24, 24),
            attention_head_dim=8,
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=5,
        ),
        _labelled,
    ),
    # google/ncsnpp-ffhq-256: skip stages with their own image pyramid, Fourier times, residuals over the root of two.
    "unet2d-ncsnpp": Tiny(
        "UNet2DModel",
        _config(
            ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
            ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
            channels=(32, 32),  # the norm of its attention has 32 groups, whatever the config
            attention_head_dim=None,
            time_embedding_type="fourier",
            freq_shift=None,
            mid_block_scale_factor=1.4142135623730951,
        ),
        lambda draw: {**_call(draw), "timestep": draw.times(50.0)},
    ),
    # No attention in the middle; a second time as label; samplers without weights.
    "unet2d-plain": Tiny(
        "UNet2DModel",
        _config(
            ["DownBlock2D", "DownBlock2D", "DownBlock2D"],
            ["UpBlock2D", "UpBlock2D", "UpBlock2D"],
            add_attention=False,
            class_embed_type="timestep",
            time_embedding_type="learned",
            num_train_timesteps=1000,
        ),
        _two_times,
    ),
    # A norm over groups in attention of its own size.
    "unet2d-attention-groups": Tiny(
        "UNet2DModel",
        _config(
            ["AttnDownBlock2D", "AttnDownBlock2D"],
            ["AttnUpBlock2D", "AttnUpBlock2D"],
            channels=(24, 32),
            attention_head_dim=8,
            attn_norm_num_groups=2,
            resnet_time_scale_shift="scale_shift",
        ),
        _call,
    ),
}
