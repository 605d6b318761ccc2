"""Kandinsky 5: a text encoder of few blocks, then video blocks with self- and cross-attention; channels last."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG5: dict[str, Any] = {
    "in_visual_dim": 5,
    "in_text_dim": 20,
    "in_text_dim2": 14,
    "time_dim": 24,
    "out_visual_dim": 5,
    "model_dim": 48,
    "ff_dim": 80,
    "num_text_blocks": 3,
    "num_visual_blocks": 3,
    "axes_dims": (4, 4, 4),
}


def _kandinsky5(draw: Draw, channels: int = 5) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 3, 4, 6, channels),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(),
        "pooled_projections": draw.normal(BATCH, 14),
        "visual_rope_pos": [torch.arange(3), torch.arange(2), torch.arange(3)],
        "text_rope_pos": torch.arange(7),
        "scale_factor": (1.0, 2.0, 2.0),
    }


def _kandinsky5_image(draw: Draw) -> dict[str, Any]:
    """Latents, latents of the given frame and its mask, along the channels."""
    return _kandinsky5(draw, channels=11)


MODELS = {
    "kandinsky5": Tiny("Kandinsky5Transformer3DModel", CONFIG5, _kandinsky5),
    "kandinsky5_i2v": Tiny(
        "Kandinsky5Transformer3DModel", CONFIG5 | {"visual_cond": True}, _kandinsky5_image
    ),
}
