"""SANA for images: linear self-attention and convolutional feed-forwards."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

_CONFIG = {
    "in_channels": 6,
    "out_channels": 6,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "num_layers": 4,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 6,
    "cross_attention_dim": 24,
    "caption_channels": 20,
    "sample_size": 6,
}


def _call(draw: Draw) -> dict[str, Any]:
    mask = torch.ones(BATCH, 7)
    mask[1, 4:] = 0
    return {
        "hidden_states": draw.normal(BATCH, 6, 6, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_attention_mask": mask,
        "timestep": draw.times(),
    }


def _sprint(draw: Draw) -> dict[str, Any]:
    return {**_call(draw), "timestep": draw.times(1.5), "guidance": torch.tensor([0.45, 0.2])}


MODELS = {
    "sana": Tiny("SanaTransformer2DModel", _CONFIG, _call),
    # SANA 1.5: norms across heads on queries and keys; here also patches, positions and biases.
    "sana15": Tiny(
        "SanaTransformer2DModel",
        {
            **_CONFIG,
            "qk_norm": "rms_norm_across_heads",
            "attention_bias": True,
            "patch_size": 2,
            "interpolation_scale": 1,
            "norm_elementwise_affine": True,
        },
        _call,
    ),
    # SANA-Sprint: guidance as an embedding.
    "sana-sprint": Tiny(
        "SanaTransformer2DModel",
        {**_CONFIG, "qk_norm": "rms_norm_across_heads", "guidance_embeds": True, "mlp_ratio": 3.0},
        _sprint,
    ),
}
