"""Transformers and UNets that make sound; the sizes are the defaults of the pipelines of diffusers."""

from __future__ import annotations

from typing import Any

from pruning.models.families import Draw
from pruning.models.native.base import (
    PROMPT_TOKENS,
    Native,
    mask,
    native,
    shape,
    text_to,
    text_words,
    times,
)


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
    call = text_to(draw, size, (128 + 2, c["cross_attention_input_dim"]), 1.0) | {
        "global_hidden_states": draw.normal(1, c["global_states_input_dim"]),
        "rotary_embedding": tuple(table.to(draw.device) for table in tables),
    }
    seconds = size[1] * 2048 / 44100
    return Native(call, f"{shape(*size)} latents ({seconds:.0f} s), {text_words(128)}, 2 time tokens")


@native("StableAudio3DiTModel")
def stable_audio3(model: Any, draw: Draw) -> Native:
    """StableAudio3Pipeline: 10 s at 44.1 kHz, latents of 4096 samples; 256 tokens of T5Gemma."""
    c = model.config
    patch = c["patch_size"]
    size = (c["io_channels"], -(-10 * 44_100 // (4096 * patch)) * patch)
    call = text_to(draw, size, (256, c["cond_token_dim"]), 1.0) | {
        "global_hidden_states": draw.normal(c["global_cond_dim"]),
        "encoder_attention_mask": mask(draw, 256),
    }
    return Native(call, f"{shape(*size)} latents (10 s), {text_words(256)}")


@native("AceStepTransformer1DModel")
def ace_step(model: Any, draw: Draw) -> Native:
    """AceStepPipeline: 60 s, 25 latents a second beside those of a source and their mask; the prompt's text."""
    c = model.config
    size, rest = (60 * 25, c["audio_acoustic_hidden_dim"]), c["in_channels"] - c["audio_acoustic_hidden_dim"]
    call = text_to(draw, size, (PROMPT_TOKENS, c["encoder_hidden_size"] or c["hidden_size"]), 1.0) | {
        "timestep_r": times(draw, 1.0),
        "context_latents": draw.normal(size[0], rest),
    }
    return Native(call, f"{shape(*size)} latents (60 s), {text_words(PROMPT_TOKENS)}")


@native("LongCatAudioDiTTransformer")
def longcat_audio(model: Any, draw: Draw) -> Native:
    """LongCatAudioDiTPipeline: its longest, 30 s at 24 kHz, latents of 2048 samples; the prompt's text."""
    c = model.config
    size = (30 * 24_000 // 2048, c["latent_dim"])
    call = text_to(draw, size, (PROMPT_TOKENS, c["dit_text_dim"]), 1.0) | {
        "encoder_attention_mask": mask(draw, PROMPT_TOKENS),
        "attention_mask": mask(draw, size[0]),
    }
    if c["use_latent_condition"]:
        call["latent_cond"] = draw.normal(*size)
    return Native(call, f"{shape(*size)} latents (30 s), {text_words(PROMPT_TOKENS)}")


@native("MiniMaxMusic3Transformer1DModel")
def minimax_music3(model: Any, draw: Draw) -> Native:
    """MiniMaxMusic3ModularPipeline: a window of 200 frames of its language model, 3.445 latents each."""
    c = model.config
    size = (c["in_channels"], round(200 * 3.445))
    call = text_to(draw, size, (size[1], c["condition_dim"]), 1.0)
    return Native(call, f"{shape(*size)} latents (a window of 200 frames)")


@native("T5FilmDecoder")
def spectrogram_diffusion(model: Any, draw: Draw) -> Native:
    """SpectrogramDiffusionPipeline: targets_length frames, after as many before them; 2048 notes."""
    c = model.config
    size = (c["targets_length"], c["input_dims"])
    known = [(draw.normal(length, c["d_model"]), mask(draw, length)) for length in (2048, size[0])]
    call = {
        "encodings_and_masks": known,
        "decoder_input_tokens": draw.normal(*size),
        "decoder_noise_time": times(draw, 1.0),
    }
    return Native(call, f"{shape(*size)} spectrogram, 2048 tokens of notes")


@native("UNet1DModel")
def unet1d(model: Any, draw: Draw) -> Native:
    """DanceDiffusionPipeline: sample_size samples of the config; a trajectory is as long."""
    c = model.config
    size = (c["in_channels"], c["sample_size"])
    return Native({"sample": draw.normal(*size), "timestep": times(draw)}, f"{shape(*size)} samples")
