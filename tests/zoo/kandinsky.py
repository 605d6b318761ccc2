"""Kandinsky 5 and 6: text blocks, then video blocks with self- and cross-attention; channels are last.

Kandinsky 6 adds an audio stream; its super-resolution model has sparse attention and no text.
"""

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
CONFIG6: dict[str, Any] = {
    "in_visual_dim": 5,
    "out_visual_dim": 5,
    "in_text_dim": 20,
    "in_text_dim2": 14,
    "time_dim": 24,
    "model_dim": 48,
    "ff_dim": 80,
    "num_text_blocks": 3,
    "num_visual_blocks": 3,
    "axes_dims": (4, 4, 4),
    "in_audio_dim": 6,
    "out_audio_dim": 6,
    "model_dim_a": 32,
    "ff_dim_a": 72,
    "axes_dims_a": (2, 2, 4),
}
CROSSED: dict[str, Any] = {
    "model_dim_a": 36,
    "axes_dims_a": (4, 4, 4),
    "ca_rope": True,
    "cross_gates": True,
    "fix_modulation": True,
    "visual_token_type_num_embeddings": 3,
}
CONFIG6_SR: dict[str, Any] = {
    "in_visual_dim": 5,
    "out_visual_dim": 7,
    "time_dim": 24,
    "model_dim": 48,
    "ff_dim": 80,
    "num_visual_blocks": 3,
    "axes_dims": (4, 4, 4),
    "nabla_window": (1, 1, 1),
    "nabla_threshold": 0.5,
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


def _kandinsky6(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 3, 4, 6, 11),
        "audio_hidden_states": draw.normal(BATCH, 9, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "pooled_projections": draw.normal(BATCH, 14),
        "timestep": draw.times(),
        "visual_rope_pos": (torch.arange(3), torch.arange(2), torch.arange(3)),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


def _kandinsky6_types(draw: Draw) -> dict[str, Any]:
    """Each frame says what it is for: given, to be made, history."""
    return _kandinsky6(draw) | {"visual_token_type_ids": torch.tensor([[0, 1, 2], [0, 2, 1]])}


def _kandinsky6_sr(draw: Draw) -> dict[str, Any]:
    """Attention works on blocks of 8 x 8 tokens; there are four of them."""
    return {"hidden_states": draw.normal(BATCH, 1, 16, 16, 11), "timestep": draw.times()}


MODELS = {
    "kandinsky5": Tiny("Kandinsky5Transformer3DModel", CONFIG5, _kandinsky5),
    "kandinsky5_i2v": Tiny(
        "Kandinsky5Transformer3DModel", CONFIG5 | {"visual_cond": True}, _kandinsky5_image
    ),
    "kandinsky6": Tiny("Kandinsky6Transformer3DModel", CONFIG6, _kandinsky6),
    "kandinsky6_crossed": Tiny("Kandinsky6Transformer3DModel", CONFIG6 | CROSSED, _kandinsky6_types),
    "kandinsky6_sr": Tiny("Kandinsky6SRTransformer3DModel", CONFIG6_SR, _kandinsky6_sr),
}
