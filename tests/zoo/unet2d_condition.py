"""UNets with cross-attention on text or image embeddings."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

TEXT = 20
TOKENS = 7


def _config(**more: Any) -> dict[str, Any]:
    """Return the shape of Stable Diffusion 1.5 in small; here `attention_head_dim` is the number of heads."""
    return {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (12, 20, 28),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": TEXT,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        **more,
    }


def _two_stages(**more: Any) -> dict[str, Any]:
    return _config(
        **{
            "block_out_channels": (12, 20),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            **more,
        }
    )


def _simple(**more: Any) -> dict[str, Any]:
    """Return the shape of DeepFloyd IF and Kandinsky 2: added keys and values; `attention_head_dim` is a size."""
    return _config(
        **{
            "block_out_channels": (24, 32),
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "attention_head_dim": 8,
            "resnet_time_scale_shift": "scale_shift",
            **more,
        }
    )


def _call(draw: Draw, channels: int = 4, text: int = TEXT) -> dict[str, Any]:
    return {
        "sample": draw.normal(BATCH, channels, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, TOKENS, text),
    }


def _masked(draw: Draw) -> dict[str, Any]:
    mask = torch.ones(BATCH, TOKENS)
    mask[1, 4:] = 0
    return {**_call(draw), "encoder_attention_mask": mask}


def _text_time(draw: Draw, text: int = TEXT) -> dict[str, Any]:
    sizes = torch.tensor([[32.0, 48.0, 0.0, 4.0, 64.0, 64.0], [64.0, 24.0, 8.0, 0.0, 48.0, 64.0]])
    return {
        **_call(draw, text=text),
        "added_cond_kwargs": {"text_embeds": draw.normal(BATCH, 10), "time_ids": sizes},
    }


def _gligen(draw: Draw) -> dict[str, Any]:
    objects = {
        "boxes": draw.normal(BATCH, 3, 4).abs(),
        "positive_embeddings": draw.normal(BATCH, 3, TEXT),
        "masks": torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    }
    return {**_call(draw), "cross_attention_kwargs": {"gligen": objects}}


def _images(draw: Draw) -> dict[str, Any]:
    call = {**_call(draw), "added_cond_kwargs": {"image_embeds": draw.normal(BATCH, 12)}}
    return {**call, "encoder_hidden_states": None}


_SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (3, 5, 7),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 10,
}

MODELS = {
    "sd15": Tiny("UNet2DConditionModel", _config(), _call),
    # Stable Diffusion 2: linear projections, heads by stage; the mask is what other pipelines pass.
    "sd2": Tiny(
        "UNet2DConditionModel",
        _config(use_linear_projection=True, attention_head_dim=(3, 5, 7), upcast_attention=True),
        _masked,
    ),
    "sdxl": Tiny("UNet2DConditionModel", _config(**_SDXL), _text_time),
    # BK-SDM: one layer a stage, no middle.
    "bk-sdm": Tiny("UNet2DConditionModel", _config(layers_per_block=1, mid_block_type=None), _call),
    # SSD-1B: depth by layer, the way up spelled out.
    "ssd1b": Tiny(
        "UNet2DConditionModel",
        _config(
            **{
                **_SDXL,
                "transformer_layers_per_block": ((0, 0), (1, 2), (2, 1)),
                "reverse_transformer_layers_per_block": ((2, 1, 1), (1, 2, 1), (0, 0, 0)),
            }
        ),
        _text_time,
    ),
    # Kolors: text of another width is projected first.
    "kolors": Tiny(
        "UNet2DConditionModel",
        _two_stages(
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 10,
            encoder_hid_dim=28,
            encoder_hid_dim_type="text_proj",
        ),
        lambda draw: _text_time(draw, text=28),
    ),
    # Inpainting and a latent consistency model: nine channels, guidance as an embedding.
    "lcm-inpaint": Tiny(
        "UNet2DConditionModel",
        _two_stages(in_channels=9, time_cond_proj_dim=12),
        lambda draw: {**_call(draw, channels=9), "timestep_cond": draw.normal(BATCH, 12)},
    ),
    # The x4 upscaler: the noise level is a label; some stages have cross-attention only.
    "sd-upscaler": Tiny(
        "UNet2DConditionModel",
        _config(in_channels=7, num_class_embeds=5, only_cross_attention=(True, True, False)),
        lambda draw: {**_call(draw, channels=7), "class_labels": draw.integers(5, BATCH)},
    ),
    # Stable unCLIP: an image embedding beside the time.
    "sd-unclip": Tiny(
        "UNet2DConditionModel",
        _two_stages(class_embed_type="projection", projection_class_embeddings_input_dim=14),
        lambda draw: {**_call(draw), "class_labels": draw.normal(BATCH, 14)},
    ),
    # GLIGEN: gated self-attention over boxes and phrases.
    "gligen": Tiny("UNet2DConditionModel", _two_stages(attention_type="gated"), _gligen),
    # AudioLDM: no text, a class embedding joined to the time.
    "audioldm": Tiny(
        "UNet2DConditionModel",
        _two_stages(
            cross_attention_dim=(12, 20),  # the widths of the stages: both attentions are self-attention
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=14,
            class_embeddings_concat=True,
        ),
        lambda draw: {**_call(draw), "encoder_hidden_states": None, "class_labels": draw.normal(BATCH, 14)},
    ),
    # DeepFloyd IF: text pooled by attention, norms on the text in each block; the upscaler's second time.
    "deepfloyd": Tiny(
        "UNet2DConditionModel",
        _simple(
            addition_embed_type="text",
            cross_attention_dim=32,  # the norm over the text has 32 groups, whatever the config
            addition_embed_type_num_heads=4,
            encoder_hid_dim=28,
            encoder_hid_dim_type="text_proj",
            cross_attention_norm="group_norm",
            act_fn="gelu",
            class_embed_type="timestep",
        ),
        lambda draw: {**_call(draw, text=28), "class_labels": draw.times(300.0).flip(0)},
    ),
    # Kandinsky 2.2: image embeddings as tokens and beside the time.
    "kandinsky22": Tiny(
        "UNet2DConditionModel",
        _simple(
            addition_embed_type="image",
            encoder_hid_dim=12,
            encoder_hid_dim_type="image_proj",
        ),
        _images,
    ),
    # Kandinsky 2.1: text and image embeddings.
    "kandinsky21": Tiny(
        "UNet2DConditionModel",
        _simple(
            addition_embed_type="text_image",
            encoder_hid_dim=14,
            encoder_hid_dim_type="text_image_proj",
        ),
        lambda draw: {
            **_call(draw, text=14),
            "added_cond_kwargs": {
                "image_embeds": draw.normal(BATCH, TEXT),
                "text_embeds": draw.normal(BATCH, TEXT),
            },
        },
    ),
    # Cross-attention alone everywhere; resnets that take the time without activation and scale their output.
    "simple-only-cross": Tiny(
        "UNet2DConditionModel",
        _simple(
            only_cross_attention=True,
            mid_block_only_cross_attention=True,
            resnet_skip_time_act=True,
            resnet_out_scale_factor=1.4,
            time_embedding_act_fn="silu",
        ),
        _call,
    ),
    # The x2 latent upscaler: k-diffusion blocks, Fourier times, no middle.
    "latent-upscaler": Tiny(
        "UNet2DConditionModel",
        _config(
            # The norms have groups of 32; the first stage up is known by widths that equal the time's.
            block_out_channels=(32, 64, 64),
            time_embedding_dim=64,
            down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
            mid_block_type=None,
            up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
            attention_head_dim=8,
            conv_in_kernel=1,
            conv_out_kernel=1,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            timestep_post_act="gelu",
            act_fn="gelu",
            time_cond_proj_dim=12,
            norm_num_groups=None,
            only_cross_attention=False,
        ),
        lambda draw: {
            **_call(draw),
            "timestep": draw.times(3.0) - 1.0,
            "timestep_cond": draw.normal(BATCH, 12),
        },
    ),
    # Self-attention stages without text and a middle without attention.
    "unet-condition-attention": Tiny(
        "UNet2DConditionModel",
        _config(
            block_out_channels=(24, 32),
            down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2D",
            up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D"),
            attention_head_dim=8,
        ),
        _call,
    ),
}
