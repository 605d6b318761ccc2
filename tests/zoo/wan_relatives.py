"""Built on Wan's blocks: ChronoEdit, and AnyFlow, which is told where in time to go."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny


def _edit(draw: Draw, text: int = 7) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 2, 8, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, text, 20),
    }


def _edit_image(draw: Draw) -> dict[str, Any]:
    # The split of text and image is at 512 text tokens, whatever the config.
    return {**_edit(draw, text=512), "encoder_hidden_states_image": draw.normal(BATCH, 5, 14)}


def _times(draw: Draw, frames: int, high: float) -> torch.Tensor:
    return draw.times(high)[:, None].repeat(1, frames)


def _anyflow(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 3, 4, 8, 6),
        "timestep": _times(draw, 3, 1000.0),
        "r_timestep": _times(draw, 3, 600.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
    }


def _far(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, 4, 8, 8),
        "timestep": _times(draw, 4, 1000.0),
        "r_timestep": _times(draw, 4, 600.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "chunk_partition": [1, 1, 2],
    }


def _far_clean(draw: Draw) -> dict[str, Any]:
    return {
        **_far(draw),
        "clean_hidden_states": draw.normal(BATCH, 3, 4, 8, 8),
        "clean_timestep": torch.zeros(BATCH, 3),
    }


_CONFIG = {
    "num_attention_heads": 3,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 16,
    "ffn_dim": 44,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}

_FAR = {**_CONFIG, "num_layers": 3, "full_chunk_limit": 2, "chunk_partition": (1, 1, 2)}

MODELS = {
    "chronoedit": Tiny("ChronoEditTransformer3DModel", _CONFIG, _edit),
    # As published: an image beside the text, with keys and values of its own.
    "chronoedit-image": Tiny(
        "ChronoEditTransformer3DModel", {**_CONFIG, "image_dim": 14, "added_kv_proj_dim": 36}, _edit_image
    ),
    "anyflow": Tiny("AnyFlowTransformer3DModel", _CONFIG, _anyflow),
    "anyflow-image": Tiny(
        "AnyFlowTransformer3DModel",
        {**_CONFIG, "image_dim": 14, "deltatime_type": "t-r", "cross_attn_norm": False},
        lambda draw: {**_anyflow(draw), "encoder_hidden_states_image": draw.normal(BATCH, 5, 14)},
    ),
    # Frames in causal chunks, old ones in coarse patches: without and with the clean frames that it is trained with.
    "anyflow-far": Tiny("AnyFlowFARTransformer3DModel", _FAR, _far),
    "anyflow-far-clean": Tiny("AnyFlowFARTransformer3DModel", _FAR, _far_clean),
}
