"""Wan and what is built on it: videos of 4 x 8 x 8 pixels a latent, 512 text tokens of UMT5."""

from __future__ import annotations

from typing import Any

import torch

from pruning.models.families import Draw
from pruning.models.native.base import (
    Native,
    arguments_of,
    cells_of,
    indices,
    native,
    text_to,
    text_words,
    times,
    video_words,
)

SIZES = {
    "WanTransformer3DModel": (81, 480, 832),
    "WanVACETransformer3DModel": (81, 480, 832),
    "ChronoEditTransformer3DModel": (81, 480, 832),
    "AnyFlowTransformer3DModel": (81, 480, 832),
    "SkyReelsV2Transformer3DModel": (97, 544, 960),
}
"""Frames, height and width of the pipelines' videos."""

CLIP_TOKENS = 257
TEXT = 512


@native(*SIZES)
def wan(model: Any, draw: Draw) -> Native:
    """WanPipeline and its like: a text, where the config asks for it an image, and a time each or one a frame.

    48 channels are those of Wan 2.2's autoencoder of 4 x 16 x 16, made for 121 frames of 1280 x 704 px, whose model is
    told a time a token. From images the 14B model of Wan 2.1 takes 257 tokens of CLIP. No more cells than positions.
    """
    c, told = model.config, arguments_of(model)
    per_token = c["in_channels"] == 48
    factor = 16 if per_token else 8
    size = (121, 704, 1280) if per_token else SIZES[type(model).__name__]
    most = [c["rope_max_seq_len"] * patch for patch in c["patch_size"]]
    cells = [min(pair) for pair in zip(cells_of(*size, factor=factor), most, strict=True)]
    tokens = cells[0] * cells[1] * cells[2] // (c["patch_size"][0] * c["patch_size"][1] * c["patch_size"][2])
    call = text_to(draw, (c["in_channels"], *cells), (TEXT, c["text_dim"]))
    more = [text_words(TEXT)]
    if c.get("image_dim") is not None:
        pictures = 2 if c.get("pos_embed_seq_len") else 1  # first and last frame: two rows a sample
        seen = c["pos_embed_seq_len"] // 2 if pictures == 2 else CLIP_TOKENS
        pair = [draw.normal(seen, c["image_dim"]) for _ in range(pictures)]
        call["encoder_hidden_states_image"] = torch.cat(pair)
        more.append(f"{pictures * seen} image tokens")
    if per_token:
        call["timestep"] = times(draw)[:, None].expand(-1, tokens)
        more.append("a time a token")
    if "r_timestep" in told:  # AnyFlow, whose frames are before the channels
        call["hidden_states"] = call["hidden_states"].transpose(1, 2)
        call["timestep"] = call["r_timestep"] = times(draw)[:, None].expand(-1, cells[0])
        more.append("a time a frame")
    if "control_hidden_states" in told:
        call["control_hidden_states"] = draw.normal(c["vace_in_channels"], *cells)
    if c.get("inject_sample_info"):
        call["fps"] = [0] * draw.batch_size
    return Native(call, video_words((c["in_channels"], *cells), factor, 4 * cells[0] - 3, *more))


@native("WanAnimateTransformer3DModel")
def wan_animate(model: Any, draw: Draw) -> Native:
    """WanAnimatePipeline: a frame of reference and 77 frames of 1280 x 720 px, of a pose as many, and of a face."""
    c = model.config
    most = c["rope_max_seq_len"]
    frames, height, width = cells_of(77, 720, 1280)
    height, width = min(height, c["patch_size"][1] * most), min(width, c["patch_size"][2] * most)
    frames = min(frames, most - 1)
    size = (c["in_channels"], 1 + frames, height, width)
    shown, face = 4 * frames - 3, c["motion_encoder_size"]
    call = text_to(draw, size, (TEXT, c["text_dim"])) | {
        "encoder_hidden_states_image": draw.normal(CLIP_TOKENS, c["image_dim"]),
        "pose_hidden_states": draw.normal(c["latent_channels"], frames, height, width),
        "face_pixel_values": draw.normal(3, shown, face, face),
    }
    more = (text_words(TEXT), f"{CLIP_TOKENS} image tokens", f"a face of {face} x {face} px")
    return Native(call, video_words(size, 8, shown, *more))


@native("HeliosTransformer3DModel")
def helios(model: Any, draw: Draw) -> Native:
    """HeliosPipeline: 33 frames of 640 x 384 px, after 16, 2 and 1 latents at ever finer patches and the first."""
    c = model.config
    _, height, width = cells_of(33, 384, 640)
    channels, place = c["in_channels"], 0
    call = text_to(draw, (channels, 9, height, width), (TEXT, c["text_dim"]))
    for name, frames in (
        ("latents_history_long", 16),
        ("latents_history_mid", 2),
        ("latents_history_short", 2),
    ):
        call[name] = draw.normal(channels, frames, height, width)
        call[f"indices_{name}"] = indices(draw, place + frames, place)[None]
        place += frames
    call["indices_hidden_states"] = indices(draw, place + 9, place)[None]
    size = (channels, 9, height, width)
    return Native(call, video_words(size, 8, 33, text_words(TEXT), "20 latents before"))
