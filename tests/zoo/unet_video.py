"""Video UNets: temporal convolutions, temporal transformers, motion modules."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

TEXT = 20
FRAMES = 3


def _stages(suffix: str) -> dict[str, Any]:
    """Return two stages with text and one without, in the block names of one of the classes."""
    cross = f"CrossAttn{{}}Block{suffix}"
    return {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (12, 20, 28),
        "layers_per_block": 2,
        "cross_attention_dim": TEXT,
        "down_block_types": (cross.format("Down"), cross.format("Down"), f"DownBlock{suffix}"),
        "up_block_types": (f"UpBlock{suffix}", cross.format("Up"), cross.format("Up")),
    }


def _call(draw: Draw, channels: int = 4) -> dict[str, Any]:
    return {
        "sample": draw.normal(BATCH, channels, FRAMES, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
    }


def _svd(draw: Draw) -> dict[str, Any]:
    return {
        "sample": draw.normal(BATCH, FRAMES, 8, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 1, TEXT),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02], [12.0, 60.0, 0.1]]),
    }


def _i2vgen(draw: Draw) -> dict[str, Any]:
    return {
        **_call(draw),
        "fps": torch.tensor([8.0, 16.0]),
        "image_latents": draw.normal(BATCH, 4, FRAMES, 8, 8),
        "image_embeddings": draw.normal(BATCH, 1, TEXT),
    }


def _motion(draw: Draw) -> dict[str, Any]:
    # The pipelines repeat the text by frame; the model does so with the time only.
    return {
        **_call(draw),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT).repeat_interleave(FRAMES, dim=0),
    }


def _motion_sdxl(draw: Draw) -> dict[str, Any]:
    sizes = torch.tensor([[32.0, 48.0, 0.0, 4.0, 64.0, 64.0], [64.0, 24.0, 8.0, 0.0, 48.0, 64.0]])
    return {**_motion(draw), "added_cond_kwargs": {"text_embeds": draw.normal(BATCH, 10), "time_ids": sizes}}


_MOTION = {
    "norm_num_groups": 4,
    "num_attention_heads": 4,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 6,
}

MODELS = {
    # damo-vilab/text-to-video-ms-1.7b; here `attention_head_dim` is a size.
    "unet3d": Tiny(
        "UNet3DConditionModel",
        {**_stages(suffix="3D"), "norm_num_groups": 4, "attention_head_dim": 4},
        _call,
    ),
    "svd": Tiny(
        "UNetSpatioTemporalConditionModel",
        {
            **_stages(suffix="SpatioTemporal"),
            "in_channels": 8,
            "block_out_channels": (32, 64),  # the norms have 32 groups, whatever the config
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 3 * 8,
            "num_attention_heads": (2, 4),
            "num_frames": FRAMES,
        },
        _svd,
    ),
    "i2vgen-xl": Tiny(
        "I2VGenXLUNet",
        {**_stages(suffix="3D"), "norm_num_groups": 4, "num_attention_heads": 4, "attention_head_dim": 4},
        _i2vgen,
    ),
    # AnimateDiff on Stable Diffusion 1.5.
    "animatediff": Tiny("UNetMotionModel", {**_stages(suffix="Motion"), **_MOTION}, _motion),
    # AnimateDiff on SDXL: no motion module in the middle, linear projections, size conditions.
    "animatediff-sdxl": Tiny(
        "UNetMotionModel",
        {
            **_stages(suffix="Motion"),
            **_MOTION,
            "block_out_channels": (12, 20),
            "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion"),
            "up_block_types": ("CrossAttnUpBlockMotion", "UpBlockMotion"),
            "num_attention_heads": (3, 5),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "use_motion_mid_block": False,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 10,
        },
        _motion_sdxl,
    ),
    # The part of UNet3DConditionModel that looks along time; text where the config gives it a width.
    "transformer-temporal": Tiny(
        "TransformerTemporalModel",
        {
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "in_channels": 12,
            "num_layers": 3,
            "norm_num_groups": 4,
            "cross_attention_dim": TEXT,
            "double_self_attention": False,
            "positional_embeddings": "sinusoidal",
            "num_positional_embeddings": FRAMES,
        },
        lambda draw: {
            "hidden_states": draw.normal(BATCH * FRAMES, 12, 4, 4),
            "encoder_hidden_states": draw.normal(BATCH * 16, 7, TEXT),
            "num_frames": FRAMES,
        },
    ),
}
