"""Krea 2: gated attention with grouped queries; the text is fused from several layers of a language model."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 10,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "timestep_embed_dim": 32,
    "text_hidden_dim": 24,
    "num_text_layers": 5,
    "text_num_attention_heads": 4,
    "text_num_key_value_heads": 4,
    "text_intermediate_size": 40,
    "num_layerwise_text_blocks": 2,
    "num_refiner_text_blocks": 2,
    "axes_dims_rope": (4, 4, 4),
}


def _call(draw: Draw) -> dict[str, Any]:
    text = torch.zeros(7, 3, dtype=torch.long)
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(4), torch.arange(5))
    return {
        "hidden_states": draw.normal(BATCH, 20, 10),
        "encoder_hidden_states": draw.normal(BATCH, 7, 5, 24),
        "timestep": draw.times(1.0),
        "position_ids": torch.cat([text, grid]),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


MODELS = {
    "krea2": Tiny("Krea2Transformer2DModel", CONFIG, _call),
    "krea2_grouped_text": Tiny(
        "Krea2Transformer2DModel", CONFIG | {"num_key_value_heads": 1, "text_num_key_value_heads": 2}, _call
    ),
}
