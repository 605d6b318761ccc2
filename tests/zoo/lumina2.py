"""Lumina-Image 2: grouped queries, refiners of image and text, one joint stream."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 5,
    "hidden_size": 48,
    "num_layers": 3,
    "num_refiner_layers": 3,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 8,
    "ffn_dim_multiplier": 0.5,
    "axes_dim_rope": (4, 4, 4),
    "axes_lens": (32, 16, 16),
    "cap_feat_dim": 20,
}


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 5, 8, 6),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


MODELS = {
    "lumina2": Tiny("Lumina2Transformer2DModel", CONFIG, _call),
    "lumina2_one_kv_head": Tiny("Lumina2Transformer2DModel", CONFIG | {"num_kv_heads": 1}, _call),
    "lumina2_full_heads": Tiny("Lumina2Transformer2DModel", CONFIG | {"num_kv_heads": 4}, _call),
}
