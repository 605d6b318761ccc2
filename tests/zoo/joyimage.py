"""JoyImage editing models: two streams with fused query, key and value projections."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "in_channels": 5,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "text_dim": 20,
    "mlp_width_ratio": 3.0,
    "num_layers": 3,
    "rope_dim_list": [4, 4, 4],
}


def _edit(draw: Draw) -> dict[str, Any]:
    """A reference image and the latents, as items of one frame."""
    return {
        "hidden_states": draw.normal(BATCH, 2, 5, 1, 4, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
    }


def _video(draw: Draw) -> dict[str, Any]:
    return _edit(draw) | {"hidden_states": draw.normal(BATCH, 5, 3, 4, 6)}


def _edit_plus(draw: Draw) -> dict[str, Any]:
    """Patches of images of unlike sizes in one row; the second sample has fewer."""
    return {
        "hidden_states": draw.normal(BATCH, 24, 5, 1, 2, 2),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_hidden_states_mask": (torch.arange(7) < torch.tensor([[7], [5]])).long(),
        "shape_list": [[(1, 3, 4), (1, 4, 3)], [(1, 3, 4), (1, 3, 3)]],
    }


MODELS = {
    "joyimage_edit": Tiny("JoyImageEditTransformer3DModel", CONFIG, _edit),
    "joyimage_video": Tiny("JoyImageEditTransformer3DModel", CONFIG | {"rope_type": "mrope"}, _video),
    "joyimage_edit_plus": Tiny("JoyImageEditPlusTransformer3DModel", CONFIG, _edit_plus),
}
