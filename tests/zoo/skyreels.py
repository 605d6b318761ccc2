"""SkyReels V2: Wan's blocks with a time for each frame (diffusion forcing) and the frame rate."""

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
    "rope_max_seq_len": 16,
}
IMAGE: dict[str, Any] = {"in_channels": 11, "image_dim": 14, "added_kv_proj_dim": 48}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 5, 4, 4, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
    }


def _image(draw: Draw) -> dict[str, Any]:
    """The attention takes all but the last 512 tokens of the context for image tokens, so the text has 512."""
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 11, 4, 4, 6),
        "encoder_hidden_states": draw.normal(BATCH, 512, 20),
        "encoder_hidden_states_image": draw.normal(BATCH, 9, 14),
    }


def _frame_rate(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"fps": [0, 1]}


def _forcing(draw: Draw) -> dict[str, Any]:
    """A time for each frame; with the frame rate as well, the class takes one sample only."""
    return _text(draw) | {
        "timestep": draw.times()[:, None] * torch.tensor([0.1, 0.4, 0.7, 1.0]),
        "enable_diffusion_forcing": True,
    }


MODELS = {
    "skyreels_v2": Tiny("SkyReelsV2Transformer3DModel", CONFIG, _text),
    "skyreels_v2_i2v": Tiny("SkyReelsV2Transformer3DModel", CONFIG | IMAGE, _image),
    "skyreels_v2_frame_rate": Tiny(
        "SkyReelsV2Transformer3DModel", CONFIG | {"inject_sample_info": True}, _frame_rate
    ),
    "skyreels_v2_forcing": Tiny(
        "SkyReelsV2Transformer3DModel", CONFIG | {"num_frame_per_block": 2}, _forcing
    ),
}
