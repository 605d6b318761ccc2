"""HiDream: experts with a shared one, text states of a language model given anew to each block."""

from __future__ import annotations

from typing import Any

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 5,
    "num_layers": 3,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "caption_channels": [20, 14],
    "text_emb_dim": 18,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "axes_dims_rope": (4, 2, 2),
    "max_resolution": (10, 10),
    "llama_layers": [0, 1, 2, 3, 5, 5],
}


def _square(draw: Draw, height: int = 8) -> dict[str, Any]:
    """The language model's states have its layers first: shape (6, 2, 6, 14)."""
    return {
        "hidden_states": draw.normal(BATCH, 5, height, 8),
        "timesteps": draw.times(),
        "encoder_hidden_states_t5": draw.normal(BATCH, 7, 20),
        "encoder_hidden_states_llama3": draw.normal(6, BATCH, 6, 14),
        "pooled_embeds": draw.normal(BATCH, 18),
    }


def _oblong(draw: Draw) -> dict[str, Any]:
    """Sizes that are not square are padded to the largest number of tokens and masked."""
    return _square(draw, height=6)


MODELS = {
    "hidream": Tiny("HiDreamImageTransformer2DModel", CONFIG, _square),
    "hidream_masked": Tiny("HiDreamImageTransformer2DModel", CONFIG | {"num_activated_experts": 1}, _oblong),
}
