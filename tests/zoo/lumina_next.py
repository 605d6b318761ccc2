"""Lumina-Next: grouped queries, norms across heads, one gate a head on the text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from tests.zoo.base import BATCH, Draw, Tiny


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_mask": (torch.arange(7) < torch.tensor([[7], [4]])).long(),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 16, 16),
        "cross_attention_kwargs": {},
    }


_CONFIG = {
    "sample_size": 8,
    "in_channels": 4,
    "hidden_size": 32,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 12,
    "cross_attention_dim": 20,
}

MODELS = {
    "lumina-next": Tiny("LuminaNextDiT2DModel", _CONFIG, _call),
    "lumina-next-plain": Tiny(
        "LuminaNextDiT2DModel",
        {**_CONFIG, "num_kv_heads": None, "qk_norm": False, "learn_sigma": False, "ffn_dim_multiplier": 0.75},
        _call,
    ),
}
