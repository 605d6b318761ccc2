"""SANA's video models: linear attention, gated convolutions over space and time; a world model and its refiner."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

VIDEO: dict[str, Any] = {
    "in_channels": 5,
    "out_channels": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "num_cross_attention_heads": 3,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 48,
    "caption_channels": 20,
    "mlp_ratio": 1.5,
    "sample_size": 6,
    "rope_max_seq_len": 16,
}
WORLD: dict[str, Any] = {
    "in_channels": 5,
    "num_layers": 4,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "softmax_every_n": 2,
    "linear_head_dim": 16,
    "chunk_plucker_channels": 7,
    "chunk_plucker_post_attn_blocks": 3,
    "caption_channels": 20,
    "mlp_ratio": 1.5,
}
WORLD_PLAIN: dict[str, Any] = {
    "qk_norm": False,
    "k_conv_only": False,
    "ffn_type": "mlp",
    "cross_norm": False,
    "use_chunk_plucker_post_attn": False,
}
REFINER: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 10,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 32,
    "num_layers": 3,
    "caption_channels": 20,
    "rope_type": "split",
    "rope_double_precision": False,
}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
    }


def _video(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"hidden_states": draw.normal(BATCH, 5, 3, 4, 6)}


def _guided(draw: Draw) -> dict[str, Any]:
    return _video(draw) | {"guidance": torch.tensor([0.3, 0.6])}


def _token_times(draw: Draw) -> dict[str, Any]:
    """Image to video: the tokens of the first frame have time 0, shape (2, 1, 3, 2, 3)."""
    times = draw.times()[:, None, None, None, None] * torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    return _video(draw) | {"timestep": times.repeat(1, 1, 1, 2, 3)}


def _world(draw: Draw) -> dict[str, Any]:
    """A camera for each frame: its pose as a 4 x 4 matrix in a row, then focal lengths and centre in latent pixels."""
    poses = torch.eye(4).repeat(BATCH, 3, 1, 1)
    poses[..., :3, :3] = torch.linalg.qr(draw.normal(BATCH, 3, 3, 3))[0]
    poses[..., :3, 3] = draw.normal(BATCH, 3, 3)
    lenses = torch.tensor([5.0, 4.0, 2.5, 2.0]).expand(BATCH, 3, 4)
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 5, 3, 4, 5),
        "timestep": draw.times()[:, None, None] * torch.tensor([0.0, 1.0, 1.0]),
        "camera_conditions": torch.cat([poses.flatten(2), lenses], dim=-1),
    }


def _world_rays(draw: Draw) -> dict[str, Any]:
    return _world(draw) | {"chunk_plucker": draw.normal(BATCH, 7, 3, 4, 5)}


def _refiner(draw: Draw) -> dict[str, Any]:
    """The caller computes the rotary tables: cosine and sine of each head, token and pair of channels."""
    angles = draw.normal(1, 4, 24, 6).repeat(BATCH, 1, 1, 1)
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 24, 10),
        "timestep": draw.times()[:, None] * (torch.arange(24) >= 12),
        "video_rotary_emb": (angles.cos(), angles.sin()),
    }


def _refiner_interleaved(draw: Draw) -> dict[str, Any]:
    """Tables over all heads at once, each angle twice."""
    angles = draw.normal(1, 24, 24).repeat_interleave(2, dim=-1).repeat(BATCH, 1, 1)
    return _refiner(draw) | {"video_rotary_emb": (angles.cos(), angles.sin())}


MODELS = {
    "sana_video": Tiny("SanaVideoTransformer3DModel", VIDEO, _video),
    "sana_video_i2v": Tiny("SanaVideoTransformer3DModel", VIDEO | {"qk_norm": None}, _token_times),
    "sana_video_guided": Tiny("SanaVideoTransformer3DModel", VIDEO | {"guidance_embeds": True}, _guided),
    "sana_wm": Tiny("SanaWMTransformer3DModel", WORLD, _world_rays),
    "sana_wm_plain": Tiny("SanaWMTransformer3DModel", WORLD | WORLD_PLAIN, _world),
    "sana_wm_refiner": Tiny("SanaWMLTX2RefinerTransformer3DModel", REFINER, _refiner),
    "sana_wm_refiner_interleaved": Tiny(
        "SanaWMLTX2RefinerTransformer3DModel",
        REFINER | {"rope_type": "interleaved", "gated_attn": True},
        _refiner_interleaved,
    ),
}
