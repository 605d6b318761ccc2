"""Autoencoders of diffusers, tiny."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import nn


def kl(channels: int = 4, stages: int = 2, **more: Any) -> nn.Module:
    """Return the autoencoder of Stable Diffusion: each stage but the last halves the side."""
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
        "block_out_channels": (8,) * stages,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": 16,
        **more,
    }
    return diffusers.AutoencoderKL(**config)


def shifted(channels: int = 4, stages: int = 2, **more: Any) -> nn.Module:
    """Return the autoencoder of Stable Diffusion 3 and Flux: no layers between the latents, and a shift."""
    return kl(
        channels,
        stages,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.5,
        **more,
    )


def wan(channels: int, cls: str = "AutoencoderKLWan", **more: Any) -> nn.Module:
    """Return Wan's causal autoencoder of videos, or its relative: 8 times in space, 4 in time."""
    config = {
        "base_dim": 6,
        "z_dim": channels,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.1] * channels,
        "latents_std": [0.8] * channels,
        **more,
    }
    return getattr(diffusers, cls)(**config)


def compressing(channels: int, stages: int = 2) -> nn.Module:
    """Return SANA's autoencoder: 2 to the power of the stages but one, in space."""
    plain = ("ResBlock",) * stages
    return diffusers.AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=4,
        encoder_block_types=plain,
        decoder_block_types=plain,
        encoder_block_out_channels=(4 * channels,) * stages,
        decoder_block_out_channels=(4 * channels,) * stages,
        encoder_layers_per_block=(1,) * stages,
        decoder_layers_per_block=(1,) * stages,
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
        scaling_factor=0.4,
    )


def quantized(channels: int = 4, stages: int = 2, **more: Any) -> nn.Module:
    """Return an autoencoder with a code book."""
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
        "block_out_channels": (8,) * stages,
        "latent_channels": channels,
        "num_vq_embeddings": 12,
        "norm_num_groups": 4,
        **more,
    }
    return diffusers.VQModel(**config)


def small(channels: int = 4, stages: int = 3) -> nn.Module:
    """Return the autoencoder without norms."""
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * stages,
        decoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages,
        num_decoder_blocks=(1,) * stages,
        latent_channels=channels,
    )


def packed(channels: int) -> nn.Module:
    """Return the autoencoder of FLUX.2, whose statistics are of patches of 2 x 2 latents: twice in space."""
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    )
