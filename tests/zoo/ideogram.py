"""Ideogram 4: one packed stream of text and image tokens, gated by adaptive norms of a narrow embedding."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 10,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "adaln_dim": 14,
    "llm_features_dim": 20,
    "mrope_section": (2, 2, 2),
}
PADDING, TEXT, IMAGE = -1, 3, 2


def _call(draw: Draw) -> dict[str, Any]:
    """Seven text tokens, the second sample's padded by two at the left, then a grid of 4 x 5."""
    roles = torch.tensor([TEXT] * 7 + [IMAGE] * 20).repeat(BATCH, 1)
    roles[1, :2] = 0
    segments = torch.ones(BATCH, 27, dtype=torch.long)
    segments[1, :2] = PADDING
    text = torch.arange(7)[:, None].expand(-1, 3)
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(4), torch.arange(5)) + 7
    return {
        "hidden_states": draw.normal(BATCH, 27, 10),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 27, 20),
        "position_ids": torch.cat([text, grid]).repeat(BATCH, 1, 1),
        "segment_ids": segments,
        "indicator": roles,
    }


MODELS = {"ideogram4": Tiny("Ideogram4Transformer2DModel", CONFIG, _call)}
