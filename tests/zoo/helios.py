"""Helios: Wan's blocks over frames to be made and a history at three resolutions."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "in_channels": 5,
    "out_channels": 5,
    "text_dim": 20,
    "freq_dim": 32,
    "ffn_dim": 56,
    "num_layers": 3,
    "rope_dim": (4, 4, 4),
}
AMPLIFIED: dict[str, Any] = {
    "guidance_cross_attn": False,
    "zero_history_timestep": False,
    "is_amplify_history": True,
}


def _call(draw: Draw) -> dict[str, Any]:
    frames = torch.arange(11)[None]
    return {
        "hidden_states": draw.normal(BATCH, 5, 3, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "indices_hidden_states": frames[:, 8:],
        "indices_latents_history_short": frames[:, 6:8],
        "indices_latents_history_mid": frames[:, 4:6],
        "indices_latents_history_long": frames[:, :4],
        "latents_history_short": draw.normal(BATCH, 5, 2, 8, 8),
        "latents_history_mid": draw.normal(BATCH, 5, 2, 8, 8),
        "latents_history_long": draw.normal(BATCH, 5, 4, 8, 8),
    }


MODELS = {
    "helios": Tiny("HeliosTransformer3DModel", CONFIG, _call),
    "helios_amplified": Tiny("HeliosTransformer3DModel", CONFIG | AMPLIFIED, _call),
}
