"""HunyuanVideo and what is built on it: joint attention over video and text, and a refiner of the text."""

from __future__ import annotations

from typing import Any

import torch

from pruning.models.families import Draw
from pruning.models.native.base import (
    Native,
    cells_of,
    indices,
    mask,
    native,
    text_to,
    text_words,
    times,
    video_words,
    zeros,
)


def _video(model: Any, draw: Draw, cells: tuple[int, int, int]) -> dict[str, Any]:
    """Return the arguments of HunyuanVideo: 256 tokens of Llama, CLIP's pooled text, guidance if it is an input."""
    c = model.config
    call = text_to(draw, (c["in_channels"], *cells), (256, c["text_embed_dim"]))
    call["encoder_attention_mask"] = mask(draw, 256, torch.long)
    call["pooled_projections"] = draw.normal(c["pooled_projection_dim"])
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 6000.0)
    return call


@native("HunyuanVideoTransformer3DModel")
def hunyuan_video(model: Any, draw: Draw) -> Native:
    """HunyuanVideoPipeline: 129 frames of 1280 x 720 px, autoencoder of 4 x 8 x 8."""
    cells = cells_of(129, 720, 1280)
    call = _video(model, draw, cells)
    return Native(call, video_words((model.config["in_channels"], *cells), 8, 129, text_words(256)))


@native("HunyuanVideoFramepackTransformer3DModel")
def framepack(model: Any, draw: Draw) -> Native:
    """HunyuanVideoFramepackPipeline: 33 frames, after 2 clean latents, and 2 and 16 of them at coarser patches."""
    c = model.config
    _, height, width = cells_of(33, 720, 1280)
    size = (c["in_channels"], 9, height, width)
    call = _video(model, draw, (9, height, width)) | {"indices_latents": indices(draw, 9)}
    call["image_embeds"] = draw.normal(729, c["image_proj_dim"])
    place = 9
    for name, frames in (("clean", 2), ("history_2x", 2), ("history_4x", 16)):
        call[f"latents_{name}"] = draw.normal(c["in_channels"], frames, height, width)
        call[f"indices_latents_{name}"] = indices(draw, place + frames, place)
        place += frames
    words = (text_words(256), "729 image tokens", f"{place - 9} latents before")
    return Native(call, video_words(size, 8, 33, *words))


@native("HunyuanVideo15Transformer3DModel")
def hunyuan_video15(model: Any, draw: Draw) -> Native:
    """HunyuanVideo15Pipeline: 121 frames at target_size, 16 : 9, autoencoder of 4 x 16 x 16; 1000 text tokens.

    256 tokens of glyphs and 729 of an image are masked where there are none, as here, but computed.
    """
    c = model.config
    height, width = {640: (480, 848), 960: (720, 1280)}[c["target_size"]]
    cells = cells_of(121, height, width, factor=16)
    call = text_to(draw, (c["in_channels"], *cells), (1000, c["text_embed_dim"])) | {
        "encoder_attention_mask": mask(draw, 1000, torch.long),
        "encoder_hidden_states_2": draw.normal(256, c["text_embed_2_dim"]),
        "encoder_attention_mask_2": mask(draw, 256, torch.long),
        "image_embeds": zeros(draw, 729, c["image_embed_dim"]),
    }
    if c["use_meanflow"]:
        call["timestep_r"] = times(draw)
    words = (text_words(1000, 256), "729 image tokens")
    return Native(call, video_words((c["in_channels"], *cells), 16, 121, *words))
