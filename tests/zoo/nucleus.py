"""Nucleus-Image: experts that choose their tokens, their weights in one tensor of three dimensions."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 3,
    "num_layers": 4,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "joint_attention_dim": 20,
    "axes_dims_rope": (4, 4, 4),
    "dense_moe_strategy": "leave_first_block_dense",
    "num_experts": 3,
    "moe_intermediate_dim": 40,
    "capacity_factors": 2.0,
}


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 20, 12),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_hidden_states_mask": torch.arange(7) < torch.tensor([[7], [5]]),
        "img_shapes": [(1, 4, 5)] * BATCH,
    }


MODELS = {
    "nucleusmoe": Tiny("NucleusMoEImageTransformer2DModel", CONFIG, _call),
    "nucleusmoe_sigmoid": Tiny(
        "NucleusMoEImageTransformer2DModel", CONFIG | {"use_sigmoid": True, "num_key_value_heads": 4}, _call
    ),
    "nucleusmoe_dense": Tiny("NucleusMoEImageTransformer2DModel", CONFIG | {"moe_enabled": False}, _call),
}
