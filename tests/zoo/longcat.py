"""LongCat: an image model of double and single blocks, an audio model with one adaptive norm for all blocks."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

IMAGE: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 10,
    "num_layers": 3,
    "num_single_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 20,
    "axes_dims_rope": [4, 4, 4],
}
AUDIO: dict[str, Any] = {
    "dit_dim": 48,
    "dit_depth": 3,
    "dit_heads": 4,
    "dit_text_dim": 20,
    "latent_dim": 10,
    "ff_mult": 2.0,
}
LOCAL: dict[str, Any] = {
    "adaln_type": "local",
    "adaln_use_text_cond": False,
    "long_skip": False,
    "text_conv": False,
    "qk_norm": False,
    "cross_attn_norm": True,
    "use_latent_condition": False,
}


def _image(draw: Draw) -> dict[str, Any]:
    text, grid = torch.zeros(7, 3), torch.ones(20, 3)
    text[:, 1] = text[:, 2] = torch.arange(7)
    grid[:, 1:] = torch.cartesian_prod(torch.arange(4), torch.arange(5)) + 7
    return {
        "hidden_states": draw.normal(BATCH, 20, 10),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(1.0),
        "img_ids": grid,
        "txt_ids": text,
    }


def _audio(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 24, 10),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
        "timestep": draw.times(1.0),
        "attention_mask": torch.arange(24) < torch.tensor([[24], [19]]),
    }


def _audio_continued(draw: Draw) -> dict[str, Any]:
    return _audio(draw) | {"latent_cond": draw.normal(BATCH, 24, 10)}


MODELS = {
    "longcat_image": Tiny("LongCatImageTransformer2DModel", IMAGE, _image),
    "longcat_audio": Tiny("LongCatAudioDiTTransformer", AUDIO, _audio_continued),
    "longcat_audio_local": Tiny("LongCatAudioDiTTransformer", AUDIO | LOCAL, _audio),
}
