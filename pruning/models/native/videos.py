"""Transformers that make videos; the sizes are the defaults of the pipelines of diffusers."""

from __future__ import annotations

import math
from typing import Any

import torch

from pruning.models.families import Draw
from pruning.models.native.base import (
    PROMPT_TOKENS,
    Native,
    arguments_of,
    cells_of,
    indices,
    mask,
    native,
    text_to,
    text_words,
    times,
    video_words,
)


@native("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
def cogvideox(model: Any, draw: Draw) -> Native:
    """CogVideoXPipeline, ConsisIDPipeline: sizes and text tokens of the config, 4 frames and 8 px a latent.

    Version 1.5 joins `patch_size_t` latents of different times, so their number is rounded up.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    c = model.config
    patch, joined = c["patch_size"], c.get("patch_size_t") or 1
    latents = (c["sample_frames"] - 1) // c["temporal_compression_ratio"] + 1
    latents = -(-latents // joined) * joined
    size = (latents, c["in_channels"], c["sample_height"], c["sample_width"])
    tokens = c["max_text_seq_length"]
    call = text_to(draw, size, (tokens, c["text_embed_dim"]))
    if c["use_rotary_positional_embeddings"]:
        cells = (c["sample_height"] // patch, c["sample_width"] // patch)
        call["image_rotary_emb"] = get_3d_rotary_pos_embed(
            c["attention_head_dim"], ((0, 0), cells), cells, latents // joined, device=draw.device
        )
    if c.get("ofs_embed_dim") is not None:
        call["ofs"] = torch.full((1,), 2.0, device=draw.device, dtype=draw.dtype)
    more = [text_words(tokens)]
    if c.get("is_train_face"):
        call["id_cond"] = draw.normal(c["LFE_id_dim"])
        call["id_vit_hidden"] = [draw.normal(577, c["LFE_vit_dim"]) for _ in range(c["LFE_num_scale"])]
        more.append("577 tokens of a face")
    return Native(call, video_words(size, 8, c["sample_frames"], *more))


@native("LTXVideoTransformer3DModel")
def ltx(model: Any, draw: Draw) -> Native:
    """LTXPipeline: 161 frames of 704 x 512 px, autoencoder of 8 x 32 x 32, a latent a token; 128 tokens of T5."""
    c = model.config
    frames, height, width = cells_of(161, 512, 704, 8, 32)
    latents = (frames * height * width, c["in_channels"])
    call = text_to(draw, latents, (128, c["caption_channels"])) | {
        "encoder_attention_mask": mask(draw, 128, torch.long),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / 25, 32, 32),  # 25 frames a second
    }
    size = (c["in_channels"], frames, height, width)
    return Native(call, video_words(size, 32, 161, text_words(128)))


@native("LTX2VideoTransformer3DModel")
def ltx2(model: Any, draw: Draw) -> Native:
    """LTX2Pipeline: 121 frames of 768 x 512 px, 8 x 32 x 32 a token, 25 tokens of sound a second; 1024 text tokens."""
    c = model.config
    frames, height, width = cells_of(121, 512, 768, 8, 32)
    rate = c["audio_sampling_rate"] / c["audio_hop_length"] / c["audio_scale_factor"]
    sound = round(121 / 24 * rate)
    widths = (c["cross_attention_dim"], c["audio_cross_attention_dim"])
    if c["use_prompt_embeddings"]:
        widths = (c["caption_channels"], c["caption_channels"])
    call = text_to(draw, (frames * height * width, c["in_channels"]), (1024, widths[0])) | {
        "audio_hidden_states": draw.normal(sound, c["audio_in_channels"]),
        "audio_encoder_hidden_states": draw.normal(1024, widths[1]),
        "encoder_attention_mask": mask(draw, 1024, torch.long),
        "audio_encoder_attention_mask": mask(draw, 1024, torch.long),
        "sigma": times(draw),
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": 24.0,
        "audio_num_frames": sound,
    }
    size = (c["in_channels"], frames, height, width)
    return Native(call, video_words(size, 32, 121, f"{sound} tokens of sound", text_words(1024)))


@native("AllegroTransformer3DModel")
def allegro(model: Any, draw: Draw) -> Native:
    """AllegroPipeline: latents of the config, 4 frames and 8 px each; 512 tokens of T5."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    c = model.config
    frames, height, width = c["sample_frames"], c["sample_height"], c["sample_width"]
    cells = (height // c["patch_size"], width // c["patch_size"])
    tables: Any = get_3d_rotary_pos_embed_allegro(
        embed_dim=c["attention_head_dim"],
        crops_coords=((0, 0), cells),
        grid_size=cells,
        temporal_size=frames,
        interpolation_scale=tuple(c[f"interpolation_scale_{axis}"] for axis in "thw"),
    )
    places = torch.cartesian_prod(*(axis.long() for axis in tables[3:])).T[:, None].contiguous()
    size = (c["in_channels"], frames, height, width)
    call = text_to(draw, size, (512, c["caption_channels"])) | {
        "encoder_attention_mask": mask(draw, 512).to(draw.dtype),
        "image_rotary_emb": (
            tuple((cos.to(draw.device), sin.to(draw.device)) for cos, sin in tables[:3]),
            tuple(axis.to(draw.device) for axis in places),
        ),
    }
    return Native(call, video_words(size, 8, 4 * frames, text_words(512)))


@native("LatteTransformer3DModel")
def latte(model: Any, draw: Draw) -> Native:
    """LattePipeline: video_length frames, sample_size latents of 8 px; 120 tokens of T5."""
    c = model.config
    size = (c["in_channels"], c["video_length"], c["sample_size"], c["sample_size"])
    call = text_to(draw, size, (120, c["caption_channels"]))
    return Native(call, video_words(size, 8, c["video_length"], text_words(120)))


@native("EasyAnimateTransformer3DModel")
def easyanimate(model: Any, draw: Draw) -> Native:
    """EasyAnimatePipeline: 49 frames of 512 x 512 px, autoencoder of 4 x 8 x 8; 256 tokens of each text encoder."""
    c = model.config
    size = (c["in_channels"], *cells_of(49, 512, 512))
    call = text_to(draw, (c["out_channels"], *size[1:]), (256, c["text_embed_dim"]))
    if more := c["in_channels"] - c["out_channels"]:  # what is to be kept, or a control
        call["inpaint_latents"] = draw.normal(more, *size[1:])
    texts = [256]
    if c["text_embed_dim_t5"] is not None:
        call["encoder_hidden_states_t5"] = draw.normal(256, c["text_embed_dim_t5"])
        texts.append(256)
    return Native(call, video_words(size, 8, 49, text_words(*texts)))


@native("MochiTransformer3DModel")
def mochi(model: Any, draw: Draw) -> Native:
    """MochiPipeline: 19 frames of 848 x 480 px, autoencoder of 6 x 8 x 8; tokens of T5 as the config says."""
    c = model.config
    size, tokens = (c["in_channels"], *cells_of(19, 480, 848, 6)), c["max_sequence_length"]
    call = text_to(draw, size, (tokens, c["text_embed_dim"]))
    call["encoder_attention_mask"] = mask(draw, tokens)
    return Native(call, video_words(size, 8, 19, text_words(tokens)))


@native("MotifVideoTransformer3DModel")
def motif_video(model: Any, draw: Draw) -> Native:
    """MotifVideoPipeline: 121 frames of 1280 x 736 px, autoencoder of 4 x 8 x 8; 512 text tokens."""
    c = model.config
    size = (c["in_channels"], *cells_of(121, 736, 1280))
    call = text_to(draw, size, (512, c["text_embed_dim"])) | {"encoder_attention_mask": mask(draw, 512)}
    return Native(call, video_words(size, 8, 121, text_words(512)))


@native("SanaVideoTransformer3DModel", "SanaWMTransformer3DModel")
def sana_video(model: Any, draw: Draw) -> Native:
    """SanaVideoPipeline: 81 frames of 832 x 480 px; SanaWMPipeline: 161 of 1280 x 704 px and a camera; 300 tokens.

    16 channels are those of Wan's autoencoder of 4 x 8 x 8, others of one of 8 x 32 x 32.
    """
    c, world = model.config, "camera_conditions" in arguments_of(model)
    frames, height, width = (161, 704, 1280) if world else (81, 480, 832)
    time, factor = (4, 8) if c["in_channels"] == 16 else (8, 32)
    cells = cells_of(frames, height, width, time, factor)
    if "rope_max_seq_len" in c:
        most = [c["rope_max_seq_len"] * patch for patch in c["patch_size"]]
        cells = tuple(map(min, cells, most))
    size = (c["in_channels"], *cells)
    call = text_to(draw, size, (300, c["caption_channels"])) | {"encoder_attention_mask": mask(draw, 300)}
    if c.get("guidance_embeds"):
        call["guidance"] = times(draw, 1.0)
    if world:
        call["timestep"] = times(draw)[:, None, None].expand(-1, 1, cells[0])
        call["camera_conditions"] = draw.normal(cells[0], 20)  # a pose of 4 x 4 and a lens of 4
        if c["use_chunk_plucker_post_attn"]:
            call["chunk_plucker"] = draw.normal(c["chunk_plucker_channels"], *cells)
    words = [text_words(300), *["a camera a frame"] * world]
    return Native(call, video_words(size, factor, time * (cells[0] - 1) + 1, *words))


@native("MiniMaxH3Transformer3DModel")
def minimax_h3(model: Any, draw: Draw) -> Native:
    """MiniMaxH3ModularPipeline: 124 frames of 1344 x 768 px at 24 a second, with 40 latents of stereo sound.

    17 frames are 5 latents of 16 px, 2 more at the end; the text is as long as the prompt; all are one sequence.
    """
    c, text = model.config, PROMPT_TOKENS
    size, sound = ((124 - 5) // 17 * 5 + 2, 768 // 16, 1344 // 16), 2 * round(124 / 24 * 40)
    cells = tuple(side // patch for side, patch in zip(size, c["patch_size"], strict=True))
    video = math.prod(cells)
    starts = (0, text, text + sound, text + sound + video)
    parts = {
        name: indices(draw, starts[i + 1], starts[i]) for i, name in enumerate(("text", "audio", "video"))
    }
    heard = parts["audio"][:, None].expand(-1, 3)
    seen = torch.cartesian_prod(*(indices(draw, side) for side in cells))
    tags = {"text": 1, "audio": 2, "video": 0}
    call = text_to(draw, (video, c["in_channels"] * math.prod(c["patch_size"])), (text, c["text_dim"])) | {
        "audio_hidden_states": draw.normal(sound, c["audio_in_channels"]),
        "timestep": times(draw)[:1],  # of the tokens, which have one each
        "timestep_indices": torch.zeros(starts[-1], dtype=torch.long, device=parts["text"].device),
        "token_tags": torch.cat([torch.full_like(place, tags[name]) for name, place in parts.items()]),
        "position_ids": torch.cat([parts["text"][:, None].expand(-1, 3), heard, seen]),
        **{f"{name}_indices": place for name, place in parts.items()},
    }
    return Native(
        call, video_words((c["in_channels"], *size), 16, 124, f"{sound} tokens of sound", text_words(text))
    )
