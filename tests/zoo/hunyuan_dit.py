"""HunyuanDiT: norms on queries and keys, the second half of the blocks takes skips from the first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed

from tests.zoo.base import BATCH, Draw, Tiny


def _mask(first: int, second: int, size: int) -> torch.Tensor:
    return (torch.arange(size) < torch.tensor([[first], [second]])).long()


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "text_embedding_mask": _mask(7, 4, 7),
        "encoder_hidden_states_t5": draw.normal(BATCH, 5, 16),
        "text_embedding_mask_t5": _mask(3, 5, 5),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, ((0, 0), (4, 4)), (4, 4), output_type="pt"),
    }


def _with_sizes(draw: Draw) -> dict[str, Any]:
    return {
        **_call(draw),
        "image_meta_size": torch.tensor(
            [[64.0, 64.0, 64.0, 64.0, 0.0, 0.0], [48.0, 96.0, 64.0, 32.0, 8.0, 4.0]]
        ),
        "style": torch.zeros(BATCH, dtype=torch.long),
    }


_CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 8,
    "hidden_size": 24,
    "num_layers": 6,
    "mlp_ratio": 2.3,
    "cross_attention_dim": 20,
    "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 12,
    "text_len": 7,
    "text_len_t5": 5,
    "use_style_cond_and_image_meta_size": False,
}

MODELS = {
    "hunyuan-dit": Tiny("HunyuanDiT2DModel", _CONFIG, _call),
    # Version 1.1 is told sizes and a style, of which there is one.
    "hunyuan-dit11": Tiny(
        "HunyuanDiT2DModel",
        {
            **_CONFIG,
            "use_style_cond_and_image_meta_size": True,
            "learn_sigma": False,
            "activation_fn": "geglu",
        },
        _with_sizes,
    ),
}
