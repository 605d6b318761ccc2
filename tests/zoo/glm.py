"""GLM-Image: text and image in one attention, image tokens of a prior model added to the latents."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 5,
    "out_channels": 5,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "text_embed_dim": 20,
    "time_embed_dim": 32,
    "condition_dim": 8,
    "prior_vq_quantizer_codebook_size": 30,
}


def _call(draw: Draw) -> dict[str, Any]:
    """The prior is dropped for the second sample, as without guidance."""
    return {
        "hidden_states": draw.normal(BATCH, 5, 6, 8),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "prior_token_id": draw.integers(30, BATCH, 12),
        "prior_token_drop": torch.tensor([[False], [True]]).repeat(1, 12),
        "timestep": draw.times(),
        "target_size": torch.tensor([[48.0, 64.0], [64.0, 48.0]]),
        "crop_coords": torch.tensor([[0.0, 0.0], [4.0, 8.0]]),
    }


MODELS = {"glm_image": Tiny("GlmImageTransformer2DModel", CONFIG, _call)}
