"""Ovis-Image: double and single blocks with gated feed-forwards."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 10,
    "out_channels": 10,
    "num_layers": 3,
    "num_single_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "joint_attention_dim": 20,
    "axes_dims_rope": (4, 4, 4),
}


def _call(draw: Draw) -> dict[str, Any]:
    text, grid = torch.zeros(7, 3), torch.zeros(20, 3)
    text[:, 1] = text[:, 2] = torch.arange(7)
    grid[:, 1:] = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    return {
        "hidden_states": draw.normal(BATCH, 20, 10),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(1.0),
        "img_ids": grid,
        "txt_ids": text,
    }


MODELS = {"ovis_image": Tiny("OvisImageTransformer2DModel", CONFIG, _call)}
