"""LTX-Video and LTX-2: rotary tables over all heads, norms across heads; LTX-2 has a video and an audio stream."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 10,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "num_layers": 3,
    "caption_channels": 20,
}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 24, 10),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "rope_interpolation_scale": (0.32, 32, 32),
    }


def _token_times(draw: Draw) -> dict[str, Any]:
    """Image to video: the tokens of the given frame have time 0; coordinates are given, shape (2, 3, 24)."""
    coords = torch.stack(
        torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij")
    ).flatten(1)
    inputs = _text(draw) | {
        "timestep": draw.times()[:, None] * (torch.arange(24) >= 12),
        "video_coords": coords.expand(BATCH, -1, -1) * torch.tensor([0.32, 32, 32])[:, None],
    }
    return {
        k: v
        for k, v in inputs.items()
        if k not in ("num_frames", "height", "width", "rope_interpolation_scale")
    }


MODELS = {
    "ltx": Tiny("LTXVideoTransformer3DModel", CONFIG, _text),
    "ltx_token_times": Tiny("LTXVideoTransformer3DModel", CONFIG, _token_times),
}
