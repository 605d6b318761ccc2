"""Stable Diffusion 3 and 3.5: joint attention over image and text, with and without a second attention on the image."""

from __future__ import annotations

from typing import Any

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 20,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 12,
}


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "pooled_projections": draw.normal(BATCH, 12),
        "timestep": draw.times(),
    }


MODELS = {
    "sd3": Tiny("SD3Transformer2DModel", CONFIG, _call),
    "sd3_qk_norm": Tiny("SD3Transformer2DModel", CONFIG | {"qk_norm": "rms_norm"}, _call),
    "sd3_dual": Tiny(
        "SD3Transformer2DModel", CONFIG | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}, _call
    ),
}
