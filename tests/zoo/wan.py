"""Wan and VACE: video tokens, self-attention and text cross-attention with norms across heads."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "in_channels": 5,
    "out_channels": 5,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 56,
    "num_layers": 3,
    "rope_max_seq_len": 16,
}
IMAGE: dict[str, Any] = {"in_channels": 11, "image_dim": 14, "added_kv_proj_dim": 48}
VACE: dict[str, Any] = CONFIG | {"vace_layers": (0, 2), "vace_in_channels": 9}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 5, 3, 4, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
    }


def _token_times(draw: Draw) -> dict[str, Any]:
    """Wan 2.2 with a first frame given: the tokens of that frame have time 0, shape (2, 18)."""
    return _text(draw) | {"timestep": draw.times()[:, None] * (torch.arange(18) >= 6)}


def _image(draw: Draw) -> dict[str, Any]:
    """The attention takes all but the last 512 tokens of the context for image tokens, so the text has 512."""
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 11, 3, 4, 6),
        "encoder_hidden_states": draw.normal(BATCH, 512, 20),
        "encoder_hidden_states_image": draw.normal(BATCH, 9, 14),
    }


def _two_images(draw: Draw) -> dict[str, Any]:
    """First and last frame: the pipeline stacks their tokens, two rows a sample."""
    return _image(draw) | {"encoder_hidden_states_image": draw.normal(2 * BATCH, 9, 14)}


def _concat(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"hidden_states": draw.normal(BATCH, 11, 3, 4, 6)}


def _vace(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {
        "control_hidden_states": draw.normal(BATCH, 9, 3, 4, 6),
        "control_hidden_states_scale": torch.tensor([1.0, 0.6]),
    }


MODELS = {
    "wan": Tiny("WanTransformer3DModel", CONFIG, _text),
    "wan_token_times": Tiny("WanTransformer3DModel", CONFIG, _token_times),
    "wan_no_cross_norm": Tiny("WanTransformer3DModel", CONFIG | {"cross_attn_norm": False}, _text),
    "wan_i2v": Tiny("WanTransformer3DModel", CONFIG | IMAGE, _image),
    "wan_first_last": Tiny("WanTransformer3DModel", CONFIG | IMAGE | {"pos_embed_seq_len": 18}, _two_images),
    "wan22_i2v": Tiny("WanTransformer3DModel", CONFIG | {"in_channels": 11}, _concat),
    "wan_vace": Tiny("WanVACETransformer3DModel", VACE, _vace),
}
