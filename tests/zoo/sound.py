"""Sound: Stable Audio Open, ACE-Step, and the decoder of spectrogram diffusion."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from tests.zoo.base import BATCH, Draw, Tiny


def _stable_audio(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 6, 20),
        "timestep": draw.times(1.0),
        "encoder_hidden_states": draw.normal(BATCH, 7, 14),
        "global_hidden_states": draw.normal(BATCH, 1, 10),
        "rotary_embedding": get_1d_rotary_pos_embed(4, 21, use_real=True, repeat_interleave_real=False),
    }


def _ace_step(draw: Draw, text: int = 32) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 23, 6),
        "timestep": draw.times(1.0),
        "timestep_r": draw.times(0.6),
        "encoder_hidden_states": draw.normal(BATCH, 7, text),
        "context_latents": draw.normal(BATCH, 23, 10),
    }


def _spectrogram(draw: Draw) -> dict[str, Any]:
    def padded(first: int, second: int, size: int) -> torch.Tensor:
        return (torch.arange(size) < torch.tensor([[first], [second]])).float()

    encodings = [(draw.normal(BATCH, 7, 24), padded(7, 4, 7)), (draw.normal(BATCH, 5, 24), padded(3, 5, 5))]
    return {
        "encodings_and_masks": encodings,
        "decoder_input_tokens": draw.normal(BATCH, 12, 10),
        "decoder_noise_time": draw.times(1.0),
    }


_STABLE_AUDIO = {
    "sample_size": 20,
    "in_channels": 6,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "num_key_value_attention_heads": 2,
    "out_channels": 6,
    "cross_attention_dim": 16,
    "time_proj_dim": 12,
    "global_states_input_dim": 10,
    "cross_attention_input_dim": 14,
}

_ACE_STEP = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "in_channels": 16,
    "audio_acoustic_hidden_dim": 6,
    "sliding_window": 3,
}

MODELS = {
    "stable-audio": Tiny("StableAudioDiTModel", _STABLE_AUDIO, _stable_audio),
    # As many key heads as query heads in the self-attention's text counterpart.
    "stable-audio-ungrouped": Tiny(
        "StableAudioDiTModel",
        {**_STABLE_AUDIO, "num_key_value_attention_heads": 4, "cross_attention_dim": 32},
        _stable_audio,
    ),
    "ace-step": Tiny("AceStepTransformer1DModel", _ACE_STEP, _ace_step),
    # The XL model: a narrower condition, here with biases and full attention everywhere.
    "ace-step-xl": Tiny(
        "AceStepTransformer1DModel",
        {
            **_ACE_STEP,
            "encoder_hidden_size": 20,
            "attention_bias": True,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention"] * 4,
        },
        lambda draw: _ace_step(draw, text=20),
    ),
    "spectrogram-diffusion": Tiny(
        "T5FilmDecoder",
        {
            "input_dims": 10,
            "targets_length": 12,
            "d_model": 24,
            "num_layers": 4,
            "num_heads": 3,
            "d_kv": 6,
            "d_ff": 44,
        },
        _spectrogram,
    ),
}
