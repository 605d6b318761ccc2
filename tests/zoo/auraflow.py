"""AuraFlow: blocks of two streams, then of one; a feed-forward of its own."""

from __future__ import annotations

from typing import Any

from tests.zoo.base import BATCH, Draw, Tiny


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(1.0),
    }


MODELS = {
    "auraflow": Tiny(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "num_mmdit_layers": 3,
            "num_single_dit_layers": 4,
            "attention_head_dim": 8,
            "num_attention_heads": 3,
            "joint_attention_dim": 20,
            "caption_projection_dim": 24,
            "out_channels": 4,
            "pos_embed_max_size": 16,
        },
        _call,
    ),
}
