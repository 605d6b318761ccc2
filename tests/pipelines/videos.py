"""Autoencoders of videos, tiny."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import nn

WIDTH = 8


def _blocks(name: str, stages: int, **more: Any) -> dict[str, Any]:
    return {
        "down_block_types": (f"{name}DownBlock3D",) * stages,
        "up_block_types": (f"{name}UpBlock3D",) * stages,
        "block_out_channels": (WIDTH,) * stages,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        **more,
    }


def hunyuan(channels: int) -> nn.Module:
    """Return HunyuanVideo's: 8 times in space, 4 in time."""
    return diffusers.AutoencoderKLHunyuanVideo(**_blocks("HunyuanVideo", 4, latent_channels=channels))


def hunyuan15(channels: int) -> nn.Module:
    """Return HunyuanVideo 1.5's: 16 times in space, 4 in time."""
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=channels, block_out_channels=(8 * channels,) * 5, layers_per_block=1
    )


def cogvideo(channels: int = 4, **more: Any) -> nn.Module:
    """Return CogVideoX's: 8 times in space, 4 in time."""
    return diffusers.AutoencoderKLCogVideoX(
        **_blocks("CogVideoX", 4, latent_channels=channels, sample_height=48, sample_width=64, **more)
    )


def allegro(channels: int = 4) -> nn.Module:
    """Return Allegro's: 8 times in space, 4 in time."""
    return diffusers.AutoencoderKLAllegro(**_blocks("Allegro", 4, latent_channels=channels, sample_size=32))


def mochi(channels: int) -> nn.Module:
    """Return Mochi's: 8 times in space, 6 in time."""
    return diffusers.AutoencoderKLMochi(
        latent_channels=channels,
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        latents_mean=[0.1] * channels,
        latents_std=[0.8] * channels,
    )


def ltx(channels: int) -> nn.Module:
    """Return LTX-Video's: 32 times in space, 8 in time."""
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=channels,
        block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )


def cosmos(channels: int = 4) -> nn.Module:
    """Return Cosmos 1's: 8 times in space and time."""
    return diffusers.AutoencoderKLCosmos(
        latent_channels=channels,
        encoder_block_out_channels=(WIDTH,) * 4,
        decode_block_out_channels=(WIDTH,) * 4,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=None,
        latents_std=None,
    )


def temporal(channels: int = 4) -> nn.Module:
    """Return Stable Video Diffusion's: twice in space, none in time."""
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), latent_channels=channels
    )


def magvit(channels: int = 4) -> nn.Module:
    """Return EasyAnimate's: 8 times in space, 4 in time."""
    return diffusers.AutoencoderKLMagvit(
        latent_channels=channels,
        down_block_types=["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
        up_block_types=["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
        block_out_channels=[WIDTH] * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
