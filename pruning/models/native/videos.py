"""Transformers and UNets that make videos; the sizes are the defaults of the pipelines of diffusers."""

from __future__ import annotations

from typing import Any

import torch

from pruning.models.families import Draw
from pruning.models.native.base import Native, mask, native, text_words, times, video_words


@native("WanTransformer3DModel")
def wan(model: Any, draw: Draw) -> Native:
    """WanPipeline: 81 frames of 832 x 480 px, autoencoder of 4 x 8 x 8, 512 tokens of UMT5.

    48 channels are those of Wan 2.2's autoencoder of 4 x 16 x 16, made for 121 frames of 1280 x 704 px, whose model is
    told a time a token. From images the 14B model of Wan 2.1 takes 257 tokens of CLIP. No more cells than positions.
    """
    c = model.config
    per_token = c["in_channels"] == 48
    frames, height, width, factor = (121, 704, 1280, 16) if per_token else (81, 480, 832, 8)
    most = [c["rope_max_seq_len"] * patch for patch in c["patch_size"]]
    cells = [(frames - 1) // 4 + 1, height // factor, width // factor]
    cells = [min(pair) for pair in zip(cells, most, strict=True)]
    tokens = cells[0] * cells[1] * cells[2] // (c["patch_size"][0] * c["patch_size"][1] * c["patch_size"][2])
    call = {
        "hidden_states": draw.normal(c["in_channels"], *cells),
        "timestep": times(draw)[:, None].expand(-1, tokens) if per_token else times(draw),
        "encoder_hidden_states": draw.normal(512, c["text_dim"]),
    }
    more = [text_words(512)]
    if c.get("image_dim") is not None:
        pictures = 2 if c.get("pos_embed_seq_len") else 1  # first and last frame: two rows a sample
        seen = c["pos_embed_seq_len"] // 2 if pictures == 2 else 257
        pair = [draw.normal(seen, c["image_dim"]) for _ in range(pictures)]
        call["encoder_hidden_states_image"] = torch.cat(pair)
        more.append(f"{pictures * seen} image tokens")
    if per_token:
        more.append("a time a token")
    return Native(call, video_words((c["in_channels"], *cells), factor, 4 * cells[0] - 3, *more))


@native("HunyuanVideoTransformer3DModel")
def hunyuan_video(model: Any, draw: Draw) -> Native:
    """HunyuanVideoPipeline: 129 frames of 1280 x 720 px, autoencoder of 4 x 8 x 8, 256 tokens of Llama."""
    c = model.config
    size = (c["in_channels"], 33, 90, 160)
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(256, c["text_embed_dim"]),
        "encoder_attention_mask": mask(draw, 256, torch.long),
        "pooled_projections": draw.normal(c["pooled_projection_dim"]),
    }
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 6000.0)
    return Native(call, video_words(size, 8, 129, text_words(256)))


@native("CogVideoXTransformer3DModel")
def cogvideox(model: Any, draw: Draw) -> Native:
    """CogVideoXPipeline: frames, height and width of the config, 4 frames a latent, 8 px; tokens of the config.

    Version 1.5 joins `patch_size_t` latents of different times, so their number is rounded up.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    c = model.config
    patch, joined = c["patch_size"], c["patch_size_t"] or 1
    latents = (c["sample_frames"] - 1) // c["temporal_compression_ratio"] + 1
    latents = -(-latents // joined) * joined
    size = (latents, c["in_channels"], c["sample_height"], c["sample_width"])
    tokens = c["max_text_seq_length"]
    call: dict[str, Any] = {
        "hidden_states": draw.normal(*size),
        "encoder_hidden_states": draw.normal(tokens, c["text_embed_dim"]),
        "timestep": times(draw),
    }
    if c["use_rotary_positional_embeddings"]:
        cells = (c["sample_height"] // patch, c["sample_width"] // patch)
        call["image_rotary_emb"] = get_3d_rotary_pos_embed(
            c["attention_head_dim"], ((0, 0), cells), cells, latents // joined, device=draw.device
        )
    if c["ofs_embed_dim"] is not None:
        call["ofs"] = torch.full((1,), 2.0, device=draw.device, dtype=draw.dtype)
    return Native(call, video_words(size, 8, c["sample_frames"], text_words(tokens)))


@native("LTXVideoTransformer3DModel")
def ltx(model: Any, draw: Draw) -> Native:
    """LTXPipeline: 161 frames of 704 x 512 px, autoencoder of 8 x 32 x 32, a latent a token; 128 tokens of T5."""
    c = model.config
    frames, height, width = 21, 16, 22
    call = {
        "hidden_states": draw.normal(frames * height * width, c["in_channels"]),
        "encoder_hidden_states": draw.normal(128, c["caption_channels"]),
        "timestep": times(draw),
        "encoder_attention_mask": mask(draw, 128, torch.long),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),  # 25 frames a second
    }
    size = (c["in_channels"], frames, height, width)
    return Native(call, video_words(size, 32, 161, text_words(128)))


@native("UNetSpatioTemporalConditionModel")
def svd(model: Any, draw: Draw) -> Native:
    """StableVideoDiffusionPipeline: num_frames of 1024 x 576 px, latents of 8 px, one token of the image."""
    c = model.config
    size = (c["num_frames"], c["in_channels"], 72, 128)
    width = c["cross_attention_dim"]
    told = c["projection_class_embeddings_input_dim"] // c["addition_time_embed_dim"]
    call = {
        "sample": draw.normal(*size),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(1, width if isinstance(width, int) else width[0]),
        "added_time_ids": draw.normal(told),
    }
    return Native(call, video_words(size, 8, size[0], "1 image token"))
