"""Stable Audio 3: differential attention, memory tokens, one-dimensional latents."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "io_channels": 10,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "cond_token_dim": 20,
    "global_cond_dim": 14,
    "local_add_cond_dim": 11,
    "timestep_features_dim": 32,
    "ff_mult": 2.0,
    "num_memory_tokens": 5,
}
PLAIN: dict[str, Any] = {"patch_size": 2, "num_memory_tokens": 0, "use_differential_attention": False}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 10, 24),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "global_hidden_states": draw.normal(BATCH, 14),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


def _inpainting(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"local_add_cond": draw.normal(BATCH, 11, 24)}


MODELS = {
    "stable_audio3": Tiny("StableAudio3DiTModel", CONFIG, _inpainting),
    "stable_audio3_plain": Tiny("StableAudio3DiTModel", CONFIG | PLAIN, _text),
}
