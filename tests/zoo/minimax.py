"""MiniMax: video, audio and text packed in one stream with adaptive norms by modality; and a music model."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

H3: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "hidden_size": 40,
    "num_layers": 3,
    "num_refiner_layers": 2,
    "ffn_dim": 56,
    "in_channels": 3,
    "audio_in_channels": 6,
    "text_dim": 20,
    "freq_dim": 32,
    "time_embed_hidden_dim": 36,
    "time_embed_dim": 28,
    "rope_freq_dim": 2,
}
MUSIC3: dict[str, Any] = {
    "in_channels": 10,
    "condition_dim": 20,
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "ff_inner_dim": 56,
    "rotary_dim": 8,
    "fourier_embedding_dim": 32,
}


def _h3(draw: Draw) -> dict[str, Any]:
    """7 text, 12 video and 5 audio tokens; the batch shares times: one for given tokens, one for noisy ones."""
    positions = torch.arange(24)
    text, video, audio = positions.split([7, 12, 5])
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)) + 7
    tags = torch.tensor([0] * 7 + [1] * 12 + [2] * 5)
    return {
        "hidden_states": draw.normal(BATCH, 12, 12),
        "audio_hidden_states": draw.normal(BATCH, 5, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(),
        "timestep_indices": (positions >= 10).long(),
        "token_tags": tags,
        "position_ids": torch.cat([text[:, None].expand(-1, 3), grid, audio[:, None].expand(-1, 3)]),
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
    }


def _music3(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 10, 24),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 24, 20),
    }


MODELS = {
    "minimax_h3": Tiny("MiniMaxH3Transformer3DModel", H3, _h3),
    "minimax_music3": Tiny("MiniMaxMusic3Transformer1DModel", MUSIC3, _music3),
}
