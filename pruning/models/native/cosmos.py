"""Cosmos: videos of 1280 x 704 px from a text; Cosmos 3 packs text and video into one sequence without a batch."""

from __future__ import annotations

from typing import Any

import torch

from pruning.errors import PruningError
from pruning.models.families import Draw
from pruning.models.native.base import (
    PROMPT_TOKENS,
    Native,
    cells_of,
    indices,
    native,
    text_to,
    text_words,
    times,
    video_words,
)


@native("CosmosTransformer3DModel")
def cosmos(model: Any, draw: Draw) -> Native:
    """CosmosTextToWorldPipeline: 121 frames, 8 a latent; later versions, without learned positions: 93, 4 a latent.

    An odd channel is the mask of the frames that are given, whose times the later versions tell by frame. No more cells
    than positions. Version 2.5 takes the states of all layers of its text encoder, and tokens of an image.
    """
    c = model.config
    first = c["extra_pos_embed_type"] is not None
    given, (frames, time) = c["in_channels"] % 2, (121, 8) if first else (93, 4)
    cells = tuple(map(min, cells_of(frames, 704, 1280, time), c["max_size"]))
    size, width = (c["in_channels"] - given, *cells), c["text_embed_dim"]
    if c["use_crossattn_projection"]:
        width = c["crossattn_proj_in_channels"]
    call = text_to(draw, size, (512, width)) | {
        "fps": 30 if first else 16,
        "padding_mask": draw.normal(1, *cells[1:])[:1],
    }
    more = [text_words(512)]
    if given:
        call["condition_mask"] = draw.normal(1, *cells)
        if not first:
            call["timestep"] = times(draw).view(-1, 1, 1, 1, 1).expand(-1, 1, cells[0], 1, 1)
    if c["img_context_dim_in"] is not None:
        seen = c["img_context_num_tokens"]
        image = draw.normal(seen, c["img_context_dim_in"])
        call["encoder_hidden_states"] = (call["encoder_hidden_states"], image)
        more.append(f"{seen} image tokens")
    return Native(call, video_words(size, 8, time * (cells[0] - 1) + 1, *more))


@native("Cosmos3OmniTransformer")
def cosmos3(model: Any, draw: Draw) -> Native:
    """Cosmos3OmniPipeline: 189 frames of 1280 x 720 px, latents of 4 x 16 x 16; the prompt's text; no sound."""
    if draw.batch_size != 1:
        raise PruningError(f"{type(model).__name__} takes one sample a call, not {draw.batch_size}")
    c = model.config
    size, patch = (c["latent_channel"], *cells_of(189, 720, 1280, factor=16)), c["latent_patch_size"]
    cells = (size[1], -(-size[2] // patch), -(-size[3] // patch))
    length = cells[0] * cells[1] * cells[2]
    text, video = indices(draw, PROMPT_TOKENS), indices(draw, PROMPT_TOKENS + length, PROMPT_TOKENS)
    places = torch.cartesian_prod(*(indices(draw, size) for size in cells))
    places = places + torch.tensor([PROMPT_TOKENS + c["unified_3d_mrope_temporal_modality_margin"], 0, 0])
    call = {
        "input_ids": torch.zeros_like(text),
        "text_indexes": text,
        "position_ids": torch.cat([text[:, None].expand(-1, 3), places.to(text.device)]).T,
        "und_len": PROMPT_TOKENS,
        "sequence_length": PROMPT_TOKENS + length,
        "vision_tokens": [draw.normal(*size)],
        "vision_token_shapes": [cells],
        "vision_sequence_indexes": video,
        "vision_mse_loss_indexes": video,
        "vision_timesteps": times(draw).expand(length),
        "vision_noisy_frame_indexes": [indices(draw, cells[0])],
    }
    return Native(call, video_words(size, 16, 189, text_words(PROMPT_TOKENS)))
