"""Motif-Video: double, single and decoder blocks, with a cross-attention to the text beside the joint one."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 11,
    "out_channels": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "num_single_layers": 5,
    "num_decoder_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 20,
    "rope_axes_dim": (4, 4, 4),
    "enable_text_cross_attention_dual": True,
    "enable_text_cross_attention_single": True,
}
PLAIN: dict[str, Any] = {
    "num_single_layers": 3,
    "num_decoder_layers": 0,
    "enable_text_cross_attention_dual": False,
    "enable_text_cross_attention_single": False,
}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 11, 3, 4, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


def _image(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"image_embeds": draw.normal(BATCH, 4, 14)}


MODELS = {
    "motif_video": Tiny("MotifVideoTransformer3DModel", CONFIG, _text),
    "motif_video_i2v": Tiny("MotifVideoTransformer3DModel", CONFIG | {"image_embed_dim": 14}, _image),
    "motif_video_plain": Tiny("MotifVideoTransformer3DModel", CONFIG | PLAIN, _text),
}
