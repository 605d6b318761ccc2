"""Bria Fibo 2: one stream of gist tokens and picture; some blocks read the text as well."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny


def _call(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 3, 7, 20),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [4]]),
    }


def _edit(draw: Draw) -> dict[str, Any]:
    return {**_call(draw), "context_latents": [draw.normal(BATCH, 4, 4, 6), draw.normal(BATCH, 4, 4, 4)]}


_CONFIG = {
    "in_channels": 4,
    "dim": 24,
    "n_layers": 4,
    "n_refiner_layers": 2,
    "n_heads": 3,
    "cap_feat_dim": 20,
    "injection_layer_ids": (1, 3),
    "perceiver_num_layers": 2,
    "min_num_gist_tokens": 2,
    "max_num_gist_tokens": 6,
    "gist_step": 2,
    "gist_min_text_len": 2,
    "gist_max_text_len": 8,
    "axes_dims": (4, 2, 2),
    "axes_lens": (16, 8, 8),
}

MODELS = {
    "bria-fibo2": Tiny("BriaFibo2Transformer2DModel", _CONFIG, _call),
    "bria-fibo2-edit": Tiny("BriaFibo2Transformer2DModel", _CONFIG, _edit),
}
