"""PRX: image queries over image and text with fused projections; latents, or pixels behind a bottleneck."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 5,
    "patch_size": 2,
    "context_in_dim": 20,
    "hidden_size": 48,
    "mlp_ratio": 1.5,
    "num_heads": 4,
    "depth": 3,
    "axes_dim": [4, 8],
}
PIXELS: dict[str, Any] = {"in_channels": 3, "patch_size": 4, "bottleneck_size": 14, "resolution_embeds": True}


def _latents(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 5, 8, 10),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


def _pixels(draw: Draw) -> dict[str, Any]:
    return _latents(draw) | {"hidden_states": draw.normal(BATCH, 3, 16, 20)}


MODELS = {
    "prx": Tiny("PRXTransformer2DModel", CONFIG, _latents),
    "prx_pixel": Tiny("PRXTransformer2DModel", CONFIG | PIXELS, _pixels),
}
