"""Transformers of the standard block: DiT, PixArt, Latte, Allegro, priors, and the class that came before them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

from tests.zoo.base import BATCH, Draw, Tiny

TEXT = 20
WIDTH = {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 4, "attention_bias": True}
PATCHES = {"in_channels": 4, "out_channels": 8, "sample_size": 8, "patch_size": 2}
GELU = {"activation_fn": "gelu-approximate", "norm_elementwise_affine": False, "norm_eps": 1e-6}


def _mask(*lengths: int, size: int = 7) -> torch.Tensor:
    return (torch.arange(size) < torch.tensor(lengths)[:, None]).float()


def _dit(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "timestep": draw.times().long(),
        "class_labels": draw.integers(5, BATCH),
    }


def _pixart(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 8, 8),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        "encoder_attention_mask": _mask(7, 4),
        "timestep": draw.times(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _pixart_sizes(draw: Draw) -> dict[str, Any]:
    sizes = {
        "resolution": torch.tensor([[64.0, 64.0], [96.0, 32.0]]),
        "aspect_ratio": torch.tensor([[1.0], [3.0]]),
    }
    return {**_pixart(draw), "added_cond_kwargs": sizes}


def _allegro(draw: Draw) -> dict[str, Any]:
    frames, height, width = 2, 6, 8
    freqs_t, freqs_h, freqs_w, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        embed_dim=12,
        crops_coords=((0, 0), (height // 2, width // 2)),
        grid_size=(height // 2, width // 2),
        temporal_size=frames,
        interpolation_scale=(2.2, 2.0, 2.0),
    )
    grids = torch.cartesian_prod(grid_t.long(), grid_h.long(), grid_w.long()).T[:, None].contiguous()
    return {
        "hidden_states": draw.normal(BATCH, 4, frames, height, width),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        "encoder_attention_mask": _mask(7, 4),
        "timestep": draw.times(),
        "image_rotary_emb": ((freqs_t, freqs_h, freqs_w), tuple(grids)),
    }


def _latte(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 3, 8, 8),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
    }


def _prior(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, TEXT),
        "timestep": draw.times(),
        "proj_embedding": draw.normal(BATCH, TEXT),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        "attention_mask": _mask(7, 4).bool(),
    }


def _shap_e(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 6, TEXT),
        "timestep": draw.times(),
        "proj_embedding": draw.normal(BATCH, 14),
    }


def _continuous(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 12, 6, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        "encoder_attention_mask": _mask(7, 4),
    }


def _vectors(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.integers(33, BATCH, 16),
        "encoder_hidden_states": draw.normal(BATCH, 7, TEXT),
        "timestep": torch.tensor(
            70
        ),  # one for the batch: its norms split the embedding along the batch otherwise
    }


_PIXART = {**WIDTH, **PATCHES, **GELU, "cross_attention_dim": 24, "caption_channels": TEXT}
_LATTE = {**_PIXART, "video_length": 3, "norm_type": "ada_norm_single"}

MODELS = {
    "dit": Tiny("DiTTransformer2DModel", {**WIDTH, **PATCHES, "num_embeds_ada_norm": 1000}, _dit),
    "dit-no-bias": Tiny(
        "DiTTransformer2DModel",
        {
            **WIDTH,
            **PATCHES,
            "attention_bias": False,
            "activation_fn": "geglu",
            "norm_elementwise_affine": True,
        },
        _dit,
    ),
    # PixArt-Sigma, and PixArt-Alpha at 1024, which is told sizes.
    "pixart": Tiny("PixArtTransformer2DModel", {**_PIXART, "use_additional_conditions": False}, _pixart),
    "pixart-sizes": Tiny(
        "PixArtTransformer2DModel", {**_PIXART, "use_additional_conditions": True}, _pixart_sizes
    ),
    "latte": Tiny("LatteTransformer3DModel", {**_LATTE, "num_layers": 3}, _latte),
    "latte-no-bias": Tiny(
        "LatteTransformer3DModel",
        {
            **_LATTE,
            "num_layers": 3,
            "attention_bias": False,
            "activation_fn": "geglu",
            "norm_elementwise_affine": True,
        },
        _latte,
    ),
    "allegro": Tiny(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 3,
            "attention_head_dim": 12,
            "num_layers": 4,
            "cross_attention_dim": 36,
            "sample_height": 6,
            "sample_width": 8,
            "sample_frames": 2,
            "caption_channels": TEXT,
        },
        _allegro,
    ),
    # Kandinsky 2.2's prior; it is causal.
    "prior": Tiny(
        "PriorTransformer",
        {
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "num_layers": 4,
            "embedding_dim": TEXT,
            "num_embeddings": 7,
        },
        _prior,
    ),
    # Shap-E's prior from images: no text, norms on the way in, sequences out.
    "prior-shap-e": Tiny(
        "PriorTransformer",
        {
            "num_attention_heads": 4,
            "attention_head_dim": 6,
            "num_layers": 3,
            "embedding_dim": TEXT,
            "num_embeddings": 6,
            "additional_embeddings": 2,
            "time_embed_act_fn": "gelu",
            "norm_in_type": "layer",
            "embedding_proj_norm_type": "layer",
            "encoder_hid_proj_type": None,
            "added_emb_type": None,
            "time_embed_dim": 28,
            "embedding_proj_dim": 14,
            "clip_embed_dim": 22,
        },
        _shap_e,
    ),
    # The class that UNets hold, with gates; it is told no time.
    "transformer2d": Tiny(
        "Transformer2DModel",
        {**WIDTH, "in_channels": 12, "norm_num_groups": 4, "cross_attention_dim": TEXT},
        _continuous,
    ),
    # VQ-Diffusion: tokens in, log-probabilities out, norms that take the time.
    "transformer2d-vectors": Tiny(
        "Transformer2DModel",
        {
            **WIDTH,
            "num_vector_embeds": 33,
            "sample_size": 4,
            "cross_attention_dim": TEXT,
            "num_embeds_ada_norm": 100,
            "norm_type": "ada_norm",
            "activation_fn": "geglu-approximate",
        },
        _vectors,
    ),
    # As DiT and PixArt were saved before they had classes of their own.
    "transformer2d-dit": Tiny(
        "Transformer2DModel",
        {**WIDTH, **PATCHES, **GELU, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero"},
        _dit,
    ),
    "transformer2d-pixart": Tiny("Transformer2DModel", {**_PIXART, "norm_type": "ada_norm_single"}, _pixart),
}
