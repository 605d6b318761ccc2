"""CogView and CogVideoX: text and picture in one attention, each with its own norms."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from tests.zoo.base import BATCH, Draw, Tiny

TEXT = 20
TOKENS = 7
FRAMES = 2


def _image(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw.normal(BATCH, TOKENS, TEXT),
        "timestep": draw.times(),
        "original_size": torch.tensor([[64.0, 64.0], [48.0, 96.0]]),
        "target_size": torch.tensor([[64.0, 32.0], [64.0, 64.0]]),
        "crop_coords": torch.tensor([[0.0, 0.0], [8.0, 4.0]]),
    }


def _masked_image(draw: Draw) -> dict[str, Any]:
    return {**_image(draw), "attention_mask": (torch.arange(TOKENS) < torch.tensor([[TOKENS], [4]])).float()}


def _video(draw: Draw, channels: int = 4) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, FRAMES, channels, 6, 8),
        "encoder_hidden_states": draw.normal(BATCH, TOKENS, TEXT),
        "timestep": draw.times(),
    }


def _rotary(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = get_3d_rotary_pos_embed(
        embed_dim=16, crops_coords=((0, 0), (3, 4)), grid_size=(3, 4), temporal_size=frames
    )
    return cos, sin


def _image_to_video(draw: Draw) -> dict[str, Any]:
    return {**_video(draw, channels=8), "image_rotary_emb": _rotary(FRAMES)}


def _image_to_video15(draw: Draw) -> dict[str, Any]:
    return {
        **_video(draw, channels=8),
        "image_rotary_emb": _rotary(FRAMES // 2),
        "ofs": torch.tensor([2.0, 1.0]),
    }


def _consisid(draw: Draw) -> dict[str, Any]:
    return {
        **_image_to_video(draw),
        "id_cond": draw.normal(BATCH, 12),
        "id_vit_hidden": [draw.normal(BATCH, 5, 10) for _ in range(3)],
    }


_IMAGE = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "text_embed_dim": TEXT,
    "time_embed_dim": 28,
    "condition_dim": 6,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}

_VIDEO = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 20,
    "text_embed_dim": TEXT,
    "num_layers": 3,
    "sample_width": 8,
    "sample_height": 6,
    "sample_frames": (FRAMES - 1) * 4 + 1,
    "max_text_seq_length": TOKENS,
}

_ROTARY = {**_VIDEO, "in_channels": 8, "use_rotary_positional_embeddings": True}

MODELS = {
    "cogview3": Tiny("CogView3PlusTransformer2DModel", _IMAGE, _image),
    "cogview4": Tiny("CogView4Transformer2DModel", {**_IMAGE, "rope_axes_dim": (8, 8)}, _image),
    "cogvideox": Tiny("CogVideoXTransformer3DModel", _VIDEO, _video),
    # CogVideoX-5b from images: rotary and learned positions.
    "cogvideox-image": Tiny(
        "CogVideoXTransformer3DModel", {**_ROTARY, "use_learned_positional_embeddings": True}, _image_to_video
    ),
    # CogVideoX-1.5 from images: patches in time, a second number as embedding, no bias on patches.
    "cogvideox15": Tiny(
        "CogVideoXTransformer3DModel",
        {**_ROTARY, "patch_size_t": 2, "ofs_embed_dim": 20, "patch_bias": False, "attention_bias": False},
        _image_to_video15,
    ),
    # A face seen by an extractor of its own, given to every second block by cross-attention.
    "consisid": Tiny(
        "ConsisIDTransformer3DModel",
        {
            **_ROTARY,
            "num_layers": 4,
            "is_train_face": True,
            "cross_attn_interval": 2,
            "cross_attn_dim_head": 6,
            "cross_attn_num_heads": 4,
            "LFE_id_dim": 12,
            "LFE_vit_dim": 10,
            "LFE_depth": 3,
            "LFE_dim_head": 5,
            "LFE_num_heads": 4,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 4,
            "LFE_output_dim": 32,
            "LFE_ff_mult": 2,
            "LFE_num_scale": 3,
        },
        _consisid,
    ),
    "consisid-plain": Tiny("ConsisIDTransformer3DModel", _VIDEO, _video),
}
