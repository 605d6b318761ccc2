"""Qwen-Image, its editing and layered models, and Qwen-Image 2.1 of one stream."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 3,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "joint_attention_dim": 20,
    "axes_dims_rope": (4, 4, 4),
}
LAYERED: dict[str, Any] = {"use_additional_t_cond": True, "use_layer3d_rope": True}
CONFIG21: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 12,
    "out_channels": 12,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "context_in_dim": 20,
    "mlp_ratio": 2,
    "axes_dims_rope": (4, 4, 4),
}


def _inputs(draw: Draw, tokens: int, shapes: list[tuple[int, int, int]]) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, tokens, 12),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_hidden_states_mask": torch.arange(7) < torch.tensor([[7], [5]]),
        "img_shapes": [shapes] * BATCH,
    }


def _image(draw: Draw) -> dict[str, Any]:
    return _inputs(draw, 20, [(1, 4, 5)])


def _edit(draw: Draw) -> dict[str, Any]:
    """Append the tokens of the image that is edited to the latents."""
    return _inputs(draw, 29, [(1, 4, 5), (1, 3, 3)])


def _layers(draw: Draw) -> dict[str, Any]:
    """Two layers, then the image that they come from."""
    return _inputs(draw, 36, [(1, 4, 3)] * 3) | {"additional_t_cond": torch.tensor([0, 1])}


def _image21(draw: Draw) -> dict[str, Any]:
    """Seven text tokens, then a slot for every four tokens of the image."""
    return {
        "hidden_states": draw.normal(BATCH, 24, 12),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_hidden_states_mask": torch.arange(7) < torch.tensor([[7], [5]]),
        "img_shapes": [[(1, 4, 6)]] * BATCH,
        "img_mask": (torch.arange(13) >= 7).repeat(BATCH, 1),
    }


def _edit21(draw: Draw) -> dict[str, Any]:
    """Two slots within the text hold the eight tokens of the image that is edited."""
    slots = torch.tensor([0, 0, 1, 1, 0, 0, 0] + [1] * 6).bool()
    return _image21(draw) | {
        "hidden_states": draw.normal(BATCH, 32, 12),
        "img_shapes": [[(1, 2, 4), (1, 4, 6)]] * BATCH,
        "img_mask": slots.repeat(BATCH, 1),
    }


MODELS = {
    "qwen_image": Tiny("QwenImageTransformer2DModel", CONFIG, _image),
    "qwen_image_edit": Tiny("QwenImageTransformer2DModel", CONFIG, _edit),
    "qwen_image_edit_clean": Tiny("QwenImageTransformer2DModel", CONFIG | {"zero_cond_t": True}, _edit),
    "qwen_image_layered": Tiny("QwenImageTransformer2DModel", CONFIG | LAYERED, _layers),
    "qwen_image21": Tiny("QwenImage21Transformer2DModel", CONFIG21, _image21),
    "qwen_image21_edit": Tiny("QwenImage21Transformer2DModel", CONFIG21, _edit21),
    "qwen_image21_full": Tiny(
        "QwenImage21Transformer2DModel", CONFIG21 | {"causal_condition": False}, _image21
    ),
}
