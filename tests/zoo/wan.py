"""Wan, VACE and Animate: video tokens, self-attention and text cross-attention with norms across heads."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

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
VACE: dict[str, Any] = CONFIG | {"num_layers": 5, "vace_layers": (0, 2, 4), "vace_in_channels": 9}
ANIMATE: dict[str, Any] = CONFIG | {
    "num_attention_heads": 3,
    "in_channels": 14,
    "latent_channels": 5,
    "num_layers": 6,
    "image_dim": 14,
    "added_kv_proj_dim": 36,
    "motion_encoder_channel_sizes": {"16": 8, "8": 10, "4": 12},
    "motion_encoder_size": 16,
    "motion_style_dim": 14,
    "motion_dim": 6,
    "motion_encoder_dim": 18,
    "face_encoder_hidden_dim": 20,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
    "motion_encoder_batch_size": 5,
}
ANIMATE2: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "text_len": 9,
    "in_dim": 11,
    "dim": 48,
    "ffn_dim": 56,
    "freq_dim": 32,
    "text_dim": 20,
    "out_dim": 5,
    "num_heads": 4,
    "num_layers": 3,
}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 5, 3, 4, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
    }


def _token_times(draw: Draw) -> dict[str, Any]:
    """Wan 2.2 with a first frame given: the tokens of that frame have time 0, shape (2, 18)."""
    return _text(draw) | {"timestep": draw.times()[:, None] * (torch.arange(18) >= 6)}


def _image(draw: Draw) -> dict[str, Any]:
    """The attention takes all but the last 512 tokens of the context for image tokens, so the text has 512."""
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 11, 3, 4, 6),
        "encoder_hidden_states": draw.normal(BATCH, 512, 20),
        "encoder_hidden_states_image": draw.normal(BATCH, 9, 14),
    }


def _two_images(draw: Draw) -> dict[str, Any]:
    """First and last frame: the pipeline stacks their tokens, two rows a sample."""
    return _image(draw) | {"encoder_hidden_states_image": draw.normal(2 * BATCH, 9, 14)}


def _concat(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"hidden_states": draw.normal(BATCH, 11, 3, 4, 6)}


def _vace(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {
        "control_hidden_states": draw.normal(BATCH, 9, 3, 4, 6),
        "control_hidden_states_scale": torch.tensor([1.0, 0.6, 0.8]),
    }


def _animate(draw: Draw) -> dict[str, Any]:
    """Frames of a pose, one fewer than the latents have, and four pictures of a face for each of them.

    The motion encoder divides its weights by the root of the fan-in, and so does `build`: the pictures are bright, so
    that something of them is left after eleven layers.
    """
    return _image(draw) | {
        "hidden_states": draw.normal(BATCH, 14, 3, 4, 6),
        "pose_hidden_states": draw.normal(BATCH, 5, 2, 4, 6),
        "face_pixel_values": 1e6 * draw.normal(BATCH, 3, 8, 16, 16),
    }


def _animate2(draw: Draw) -> dict[str, Any]:
    """The pass over the reference frames, which fills the cache of keys and values.

    It sets the time to 1. The pass over the frames to be made takes a cache of as many heads as the model has, so its
    inputs cannot be drawn without the model.
    """
    return {
        "hidden_states": list(draw.normal(BATCH, 5, 3, 4, 6)),
        "timestep": draw.times(),
        "encoder_hidden_states": [draw.normal(7, 20), draw.normal(5, 20)],
        "condition_latents": list(draw.normal(BATCH, 6, 3, 4, 6)),
        "kv_cache": WanAnimate2KVCache(ANIMATE2["num_layers"]),
        "kv_cache_mode": "extract",
        "seq_len": 18,
        "offset_grid_sizes": torch.tensor([[3, 2, 3]]).repeat(BATCH, 1),
    }


def _animate2_image(draw: Draw) -> dict[str, Any]:
    return _animate2(draw) | {"encoder_hidden_states_image": draw.normal(BATCH, 4, 1280)}


MODELS = {
    "wan": Tiny("WanTransformer3DModel", CONFIG, _text),
    "wan_token_times": Tiny("WanTransformer3DModel", CONFIG, _token_times),
    "wan_no_cross_norm": Tiny("WanTransformer3DModel", CONFIG | {"cross_attn_norm": False}, _text),
    "wan_i2v": Tiny("WanTransformer3DModel", CONFIG | IMAGE, _image),
    "wan_first_last": Tiny("WanTransformer3DModel", CONFIG | IMAGE | {"pos_embed_seq_len": 18}, _two_images),
    "wan22_i2v": Tiny("WanTransformer3DModel", CONFIG | {"in_channels": 11}, _concat),
    "wan_vace": Tiny("WanVACETransformer3DModel", VACE, _vace),
    "wan_animate": Tiny("WanAnimateTransformer3DModel", ANIMATE, _animate),
    "wan_animate2": Tiny("WanAnimate2Transformer3DModel", ANIMATE2, _animate2_image),
    "wan_animate2_no_image": Tiny(
        "WanAnimate2Transformer3DModel", ANIMATE2 | {"use_img_emb": False}, _animate2
    ),
}
