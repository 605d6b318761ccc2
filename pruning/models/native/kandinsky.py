"""Kandinsky 5 and 6: videos of 121 frames of 768 x 512 px, channels last; autoencoder of 4 x 8 x 8."""

from __future__ import annotations

import math
from typing import Any

from pruning.errors import PruningError
from pruning.models.families import Draw
from pruning.models.native.base import (
    FLEX_ATTENTION,
    PROMPT_TOKENS,
    Native,
    cells_of,
    indices,
    mask,
    native,
    text_to,
    text_words,
    video_words,
)

FRAMES, CELLS = 121, cells_of(121, 512, 768)


def _video(model: Any, draw: Draw, tokens: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return the arguments that both have, and the shape of the latents with their channels first.

    The latents, the frames that are given and their mask are the channels, where the config has a condition.
    """
    c = model.config
    channels = 2 * c["in_visual_dim"] + 1 if c["visual_cond"] else c["in_visual_dim"]
    call = text_to(draw, (*CELLS, channels), (tokens, c["in_text_dim"]))
    call["pooled_projections"] = draw.normal(c["in_text_dim2"])
    call["visual_rope_pos"] = [
        indices(draw, size // patch) for size, patch in zip(CELLS, c["patch_size"], strict=True)
    ]
    return call, (channels, *CELLS)


@native("Kandinsky5Transformer3DModel")
def kandinsky5(model: Any, draw: Draw) -> Native:
    """Kandinsky5T2VPipeline: the text is as long as the prompt."""
    if (kind := model.config["attention_type"]) != "regular":
        raise PruningError(f"attention_type {kind!r}: {FLEX_ATTENTION}")
    call, size = _video(model, draw, PROMPT_TOKENS)
    call |= {"text_rope_pos": indices(draw, PROMPT_TOKENS), "scale_factor": (1.0, 2.0, 2.0)}
    return Native(call, video_words(size, 8, FRAMES, text_words(PROMPT_TOKENS)))


@native("Kandinsky6Transformer3DModel")
def kandinsky6(model: Any, draw: Draw) -> Native:
    """Kandinsky6TI2VAPipeline: 1024 text tokens, sound of 44.1 kHz, 1024 samples a token; 24 frames a second."""
    call, size = _video(model, draw, 1024)
    sound = math.ceil(FRAMES / 24 * 44_100 / 1024)
    call["audio_hidden_states"] = draw.normal(sound, model.config["in_audio_dim"])
    call["encoder_attention_mask"] = mask(draw, 1024)
    return Native(call, video_words(size, 8, FRAMES, f"{sound} tokens of sound", text_words(1024)))
