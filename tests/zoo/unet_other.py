"""UNets of other makes: waveforms and trajectories, Kandinsky 3, Stable Cascade, aMUSEd, DreamLite."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

TEXT = 20


def _kandinsky3(draw: Draw) -> dict[str, Any]:
    mask = torch.ones(BATCH, 7)
    mask[1, 4:] = 0
    return {
        "sample": draw.normal(BATCH, 4, 16, 16),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 28),
        "encoder_attention_mask": mask,
    }


def _cascade_prior(draw: Draw) -> dict[str, Any]:
    return {
        "sample": draw.normal(BATCH, 4, 8, 8),
        "timestep_ratio": draw.times(1.0),
        "clip_text_pooled": draw.normal(BATCH, 1, 10),
        "clip_text": draw.normal(BATCH, 5, 14),
        "clip_img": draw.normal(BATCH, 1, 12),
    }


def _cascade_decoder(draw: Draw) -> dict[str, Any]:
    return {
        "sample": draw.normal(BATCH, 4, 16, 16),
        "timestep_ratio": draw.times(1.0),
        "clip_text_pooled": draw.normal(BATCH, 1, 10),
        "effnet": draw.normal(BATCH, 6, 4, 4),
        "pixels": draw.normal(BATCH, 3, 8, 8),
    }


def _amused(draw: Draw) -> dict[str, Any]:
    return {
        "input_ids": draw.integers(33, BATCH, 6, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        "pooled_text_emb": draw.normal(BATCH, 10),
        "micro_conds": torch.tensor([[64.0, 48.0, 0.0, 4.0, 6.0], [32.0, 64.0, 8.0, 0.0, 5.0]]),
    }


def _text_to_image(draw: Draw) -> dict[str, Any]:
    return {
        "sample": draw.normal(BATCH, 4, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
    }


_AMUSED = {
    "hidden_size": 24,
    "cond_embed_dim": 10,
    "micro_cond_encode_dim": 6,
    "micro_cond_embed_dim": 5 * 6,
    "encoder_hidden_size": TEXT,
    "vocab_size": 34,
    "codebook_size": 32,
    "in_channels": 16,
    "block_out_channels": 20,
    "num_res_blocks": 3,
    "block_num_heads": 4,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "sample_size": 6,
}

_DREAMLITE = {
    "sample_size": 8,
    "block_out_channels": (12, 20, 28),
    "layers_per_block": 2,
    "cross_attention_dim": TEXT,
    "norm_num_groups": 4,
    "attention_head_dim": (3, 5, 7),
    "ff_mult": 3,
}

MODELS = {
    # harmonai/maestro-150k: waveforms, attention in the inner stages.
    "unet1d": Tiny(
        "UNet1DModel",
        {
            "sample_size": 64,
            "extra_in_channels": 16,
            "time_embedding_dim": 16,
            "block_out_channels": (32, 32, 64),
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
            "up_block_types": ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
        },
        lambda draw: {"sample": draw.normal(BATCH, 2, 64), "timestep": draw.times(1.0)},
    ),
    # bglick13/hopper-medium-v2-value-function-hor32 and its denoiser: trajectories.
    "unet1d-trajectories": Tiny(
        "UNet1DModel",
        {
            "sample_size": 32,
            "in_channels": 6,
            "out_channels": 6,
            "time_embedding_type": "positional",
            "flip_sin_to_cos": False,
            "use_timestep_embedding": True,
            "freq_shift": 1,
            "block_out_channels": (16, 24, 40),
            "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D", "DownResnetBlock1D"),
            "up_block_types": ("UpResnetBlock1D", "UpResnetBlock1D"),
            "mid_block_type": "MidResTemporalBlock1D",
            "out_block_type": "OutConv1DBlock",
            "act_fn": "mish",
        },
        lambda draw: {"sample": draw.normal(BATCH, 6, 32), "timestep": draw.times()},
    ),
    "unet1d-value": Tiny(
        "UNet1DModel",
        {
            "sample_size": 32,
            "in_channels": 6,
            "out_channels": 6,
            "time_embedding_type": "positional",
            "use_timestep_embedding": True,
            "block_out_channels": (16, 24, 40, 64),
            "down_block_types": ("DownResnetBlock1D",) * 4,
            "up_block_types": (),
            "mid_block_type": "ValueFunctionMidBlock1D",
            "out_block_type": "ValueFunction",
            "act_fn": "mish",
            "downsample_each_block": True,
        },
        lambda draw: {"sample": draw.normal(BATCH, 6, 32), "timestep": draw.times()},
    ),
    "kandinsky3": Tiny(
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 24,
            "groups": 4,
            "attention_head_dim": 8,
            "layers_per_block": 2,
            "block_out_channels": (16, 16, 24, 32),
            "cross_attention_dim": 24,
            "encoder_hid_dim": 28,
        },
        _kandinsky3,
    ),
    # stabilityai/stable-cascade-prior.
    "stable-cascade": Tiny(
        "StableCascadeUNet",
        {
            "in_channels": 4,
            "out_channels": 4,
            "timestep_ratio_embedding_dim": 16,
            "conditioning_dim": 20,
            "block_out_channels": (16, 24),
            "num_attention_heads": (4, 3),
            "down_num_layers_per_block": (2, 3),
            "up_num_layers_per_block": (3, 2),
            "clip_text_in_channels": 14,
            "clip_text_pooled_in_channels": 10,
            "clip_image_in_channels": 12,
            "clip_seq": 4,
            "switch_level": (False,),
        },
        _cascade_prior,
    ),
    # stabilityai/stable-cascade, the decoder: patches, a feature map, stages without attention, repeated mappers.
    "stable-cascade-decoder": Tiny(
        "StableCascadeUNet",
        {
            "in_channels": 4,
            "out_channels": 4,
            "timestep_ratio_embedding_dim": 16,
            "patch_size": 2,
            "conditioning_dim": 20,
            "block_out_channels": (16, 20, 24),
            "num_attention_heads": (-1, 4, 3),
            "down_num_layers_per_block": (2, 2, 3),
            "up_num_layers_per_block": (3, 2, 2),
            "down_blocks_repeat_mappers": (1, 1, 1),
            "up_blocks_repeat_mappers": (3, 2, 2),
            "block_types_per_layer": (
                ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
                ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ),
            "clip_text_pooled_in_channels": 10,
            "clip_seq": 4,
            "effnet_in_channels": 6,
            "pixel_mapper_in_channels": 3,
            "dropout": (0.0, 0.1, 0.1),
            "timestep_conditioning_type": ("sca",),
        },
        _cascade_decoder,
    ),
    # amused/amused-256 predicts tokens; it is told no time.
    "amused": Tiny("UVit2DModel", _AMUSED, _amused),
    # amused/amused-512 works at half the size.
    "amused-sampled": Tiny(
        "UVit2DModel", {**_AMUSED, "downsample": True, "upsample": True, "use_bias": True}, _amused
    ),
    # One key and value head, separable convolutions, stages without self-attention.
    "dreamlite": Tiny("DreamLiteUNetModel", _DREAMLITE, _text_to_image),
    # Its wide form: ordinary convolutions, as many key heads as query heads, linear projections, a long middle.
    "dreamlite-plain": Tiny(
        "DreamLiteUNetModel",
        {
            **_DREAMLITE,
            "use_sep_conv": False,
            "num_kv_heads": None,
            "qk_norm": None,
            "use_linear_projection": True,
            "num_mid_layers": 2,
        },
        _text_to_image,
    ),
    # On its own it has no processor for grouped queries; the UNet sets one.
    "dreamlite-transformer": Tiny(
        "DreamLiteTransformer2DModel",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 6,
            "in_channels": 12,
            "num_layers": 3,
            "norm_num_groups": 4,
            "cross_attention_dim": TEXT,
            "qk_norm": "rms_norm",
            "ff_mult": 3,
        },
        lambda draw: {
            "hidden_states": draw.normal(BATCH, 12, 6, 6),
            "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        },
    ),
}
