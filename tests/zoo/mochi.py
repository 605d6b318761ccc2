"""Mochi: unlike widths of video and text, rotary frequencies of each head at the model."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "pooled_projection_dim": 40,
    "in_channels": 5,
    "text_embed_dim": 24,
    "time_embed_dim": 16,
    "max_sequence_length": 7,
}


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 5, 3, 4, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, 24),
        "timestep": draw.times(),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


MODELS = {"mochi": Tiny("MochiTransformer3DModel", CONFIG, _call)}
