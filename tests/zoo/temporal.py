"""The transformer over frames of UNet3D and its relatives, a model class of its own; it is told no time."""

from __future__ import annotations

from typing import Any

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 6,
    "in_channels": 20,
    "num_layers": 3,
    "norm_num_groups": 4,
}
CROSSED: dict[str, Any] = {
    "cross_attention_dim": 14,
    "attention_bias": True,
    "activation_fn": "gelu",
    "double_self_attention": False,
    "positional_embeddings": "sinusoidal",
    "num_positional_embeddings": 8,
}


def _frames(draw: Draw) -> dict[str, Any]:
    """Each pixel is a sequence of five frames."""
    return {"hidden_states": draw.normal(5 * BATCH, 20, 3, 2), "num_frames": 5}


def _context(draw: Draw) -> dict[str, Any]:
    return _frames(draw) | {"encoder_hidden_states": draw.normal(6 * BATCH, 7, 14)}


MODELS = {
    "temporal": Tiny("TransformerTemporalModel", CONFIG, _frames),
    "temporal_crossed": Tiny("TransformerTemporalModel", CONFIG | CROSSED, _context),
}
