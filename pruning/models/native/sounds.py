"""Transformers that make sound; the sizes are the defaults of the pipelines of diffusers."""

from __future__ import annotations

from typing import Any

from pruning.models.families import Draw
from pruning.models.native.base import Native, native, shape, text_words, times


@native("StableAudioDiTModel")
def stable_audio(model: Any, draw: Draw) -> Native:
    """StableAudioPipeline: sample_size latents of 2048 samples at 44.1 kHz; 128 tokens of T5 and two of the times.

    The start and the end of the sound also are a token in front of the latents, so there is one more position.
    """
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    c = model.config
    size = (c["in_channels"], c["sample_size"])
    tables = get_1d_rotary_pos_embed(
        c["attention_head_dim"] // 2, size[1] + 1, use_real=True, repeat_interleave_real=False
    )
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw, 1.0),
        "encoder_hidden_states": draw.normal(128 + 2, c["cross_attention_input_dim"]),
        "global_hidden_states": draw.normal(1, c["global_states_input_dim"]),
        "rotary_embedding": tuple(table.to(draw.device) for table in tables),
    }
    seconds = size[1] * 2048 / 44100
    return Native(call, f"{shape(*size)} latents ({seconds:.0f} s), {text_words(128)}, 2 time tokens")
