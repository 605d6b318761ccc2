"""EasyAnimate: blocks of two streams whose later ones share their weights, and Ernie Image: one stream."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny


def _video(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 2, 8, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
    }


def _inpaint(draw: Draw) -> dict[str, Any]:
    return {
        **_video(draw),
        "encoder_hidden_states_t5": draw.normal(BATCH, 5, 20),
        "inpaint_latents": draw.normal(BATCH, 5, 2, 8, 6),
        "control_latents": draw.normal(BATCH, 4, 2, 8, 6),
    }


def _ernie(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 6, 4, 6),
        "timestep": draw.times(),
        "text_bth": draw.normal(BATCH, 7, 20),
        "text_lens": torch.tensor([7, 4]),
    }


_CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "sample_width": 6,
    "sample_height": 8,
    "num_layers": 5,
    "mmdit_layers": 3,
    "time_embed_dim": 20,
    "text_embed_dim": 20,
    "add_norm_text_encoder": True,
}

_ERNIE = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_layers": 4,
    "ffn_hidden_size": 44,
    "in_channels": 6,
    "out_channels": 6,
    "text_in_dim": 20,
    "rope_axes_dim": (4, 2, 2),
}

MODELS = {
    "easyanimate": Tiny("EasyAnimateTransformer3DModel", _CONFIG, _video),
    # Inpainting and control, a second text encoder, norms after as well as before.
    "easyanimate-inpaint": Tiny(
        "EasyAnimateTransformer3DModel",
        {
            **_CONFIG,
            "in_channels": 13,
            "text_embed_dim_t5": 20,
            "add_norm_text_encoder": False,
            "after_norm": True,
            "num_layers": 3,
        },
        _inpaint,
    ),
    "ernie-image": Tiny("ErnieImageTransformer2DModel", _ERNIE, _ernie),
    "ernie-image-patches": Tiny("ErnieImageTransformer2DModel", {**_ERNIE, "patch_size": 2}, _ernie),
}
