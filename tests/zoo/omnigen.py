"""OmniGen: a language model's blocks over text, input images, a time token and the latents."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 5,
    "patch_size": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 56,
    "num_layers": 3,
    "pad_token_id": 0,
    "vocab_size": 90,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 64,
    "rope_scaling": {
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [1.0, 1.2, 1.4, 1.6, 1.8, 2.0],
    },
    "pos_embed_max_size": 8,
    "time_step_dim": 32,
}
TEXT, PADDING, IMAGE, TOKENS = 11, 2, 4, 12


def _call(draw: Draw) -> dict[str, Any]:
    """The second text is padded at the left by two; each holds an image of four tokens; text is causal."""
    length = TEXT + 1 + TOKENS
    starts = (3, 6)
    mask = torch.ones(length, length).tril().repeat(BATCH, 1, 1)
    mask[:, -TOKENS:] = 1
    for row, start in enumerate(starts):
        mask[row, start : start + IMAGE, start : start + IMAGE] = 1
    mask[1, :, :PADDING] = 0
    mask[1, :PADDING] = 1  # a row of zeros would leave the softmax nothing to look at
    ids = 1 + draw.integers(89, BATCH, TEXT)
    ids[1, :PADDING] = 0
    return {
        "hidden_states": draw.normal(BATCH, 5, 6, 8),
        "timestep": draw.times(1.0),
        "input_ids": ids,
        "input_img_latents": list(draw.normal(BATCH, 1, 5, 4, 4)),
        "input_image_sizes": {row: [[start, start + IMAGE]] for row, start in enumerate(starts)},
        "attention_mask": mask,
        "position_ids": (torch.arange(length) - torch.tensor([[0], [PADDING]])).clamp(min=0),
    }


MODELS = {"omnigen": Tiny("OmniGenTransformer2DModel", CONFIG, _call)}
