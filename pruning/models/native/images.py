"""Transformers that make images: text and image in one attention, or text by cross-attention.

The sizes are the defaults of the pipelines of diffusers; an image is square.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from pruning.models.families import Draw
from pruning.models.native.base import (
    PROMPT_TOKENS,
    Native,
    grid,
    image_sizes,
    image_words,
    mask,
    native,
    text_words,
    times,
)

SIDE = 128
"""Latents of a side at 1024 px with an autoencoder of a factor of 8."""


@native("SD3Transformer2DModel")
def sd3(model: Any, draw: Draw) -> Native:
    """StableDiffusion3Pipeline: sample_size latents of 8 px; 77 tokens of CLIP and 256 of T5."""
    c = model.config
    size, tokens = (c["in_channels"], c["sample_size"], c["sample_size"]), 77 + 256
    call = {
        "hidden_states": draw.normal(*size),
        "encoder_hidden_states": draw.normal(tokens, c["joint_attention_dim"]),
        "pooled_projections": draw.normal(c["pooled_projection_dim"]),
        "timestep": times(draw),
    }
    return Native(call, image_words(size, 8, text_words(77, 256)))


@native("AuraFlowTransformer2DModel")
def auraflow(model: Any, draw: Draw) -> Native:
    """AuraFlowPipeline: 1024 px, 256 tokens; no more patches than there are positions."""
    c = model.config
    side = min(SIDE, math.isqrt(c["pos_embed_max_size"]) * c["patch_size"])
    size = (c["in_channels"], side, side)
    call = {
        "hidden_states": draw.normal(*size),
        "encoder_hidden_states": draw.normal(256, c["joint_attention_dim"]),
        "timestep": times(draw, 1.0),
    }
    return Native(call, image_words(size, 8, text_words(256)))


@native("PixArtTransformer2DModel")
def pixart(model: Any, draw: Draw) -> Native:
    """PixArtAlphaPipeline has 120 tokens, PixArtSigmaPipeline 300.

    The config does not say which it is: of the models at 1024 px, Alpha is told sizes; at 512 px the name decides.
    """
    c = model.config
    large = c["sample_size"] >= SIDE and not c["use_additional_conditions"]
    tokens = 300 if large or "sigma" in str(c.get("_name_or_path")).lower() else 120
    size = (c["in_channels"], c["sample_size"], c["sample_size"])
    side = torch.full((draw.batch_size, 2), 8.0 * c["sample_size"]).to(draw.device, draw.dtype)
    told = {"resolution": side, "aspect_ratio": torch.ones_like(side[:, :1])}
    call = {
        "hidden_states": draw.normal(*size),
        "encoder_hidden_states": draw.normal(tokens, c["caption_channels"]),
        "encoder_attention_mask": mask(draw, tokens).to(draw.dtype),
        "timestep": times(draw),
        "added_cond_kwargs": told if c["use_additional_conditions"] else dict.fromkeys(told),
    }
    return Native(call, image_words(size, 8, text_words(tokens)))


def _packed(draw: Draw, channels: int, width: int, tokens: int, side: int = SIDE // 2) -> dict[str, Any]:
    """Return the tokens of a square image, `side` a side, and of a text: what is made after Flux takes both so."""
    return {
        "hidden_states": draw.normal(side * side, channels),
        "encoder_hidden_states": draw.normal(tokens, width),
        "timestep": times(draw, 1.0),
    }


def _packed_words(channels: int, tokens: int) -> str:
    latents = f"{SIDE * SIDE // 4} x {channels} packed latents ({8 * SIDE} x {8 * SIDE} px)"
    return f"{latents}, {text_words(tokens)}"


@native("FluxTransformer2DModel")
def flux(model: Any, draw: Draw) -> Native:
    """FluxPipeline: 1024 px, 2 x 2 latents of 8 px a token; 512 tokens of T5. Fill and Depth take more channels."""
    c = model.config
    ids = torch.nn.functional.pad(grid(draw, SIDE // 2, SIDE // 2), (1, 0))
    call = _packed(draw, c["in_channels"], c["joint_attention_dim"], 512)
    call |= {
        "pooled_projections": draw.normal(c["pooled_projection_dim"]),
        "img_ids": ids,
        "txt_ids": torch.zeros(512, 3, device=draw.device),
    }
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 3.5)
    return Native(call, _packed_words(c["in_channels"], 512))


@native("Flux2Transformer2DModel")
def flux2(model: Any, draw: Draw) -> Native:
    """Flux2Pipeline: 1024 px, 2 x 2 latents of 8 px a token; 512 tokens, with their place as fourth position."""
    c = model.config
    rows = draw.batch_size
    image = torch.nn.functional.pad(grid(draw, SIDE // 2, SIDE // 2), (1, 1))
    text = torch.nn.functional.pad(grid(draw, 512), (3, 0))
    call = _packed(draw, c["in_channels"], c["joint_attention_dim"], 512)
    call |= {"img_ids": image.expand(rows, -1, -1), "txt_ids": text.expand(rows, -1, -1)}
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 4.0)
    return Native(call, _packed_words(c["in_channels"], 512))


@native("QwenImageTransformer2DModel")
def qwen_image(model: Any, draw: Draw) -> Native:
    """QwenImagePipeline: 1024 px, 2 x 2 latents of 8 px a token; the text is as long as the prompt (at most 512)."""
    c = model.config
    call = _packed(draw, c["in_channels"], c["joint_attention_dim"], PROMPT_TOKENS)
    call |= {
        "encoder_hidden_states_mask": mask(draw, PROMPT_TOKENS),
        "img_shapes": [[(1, SIDE // 2, SIDE // 2)]] * draw.batch_size,
    }
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 1.0)
    if c["use_additional_t_cond"]:
        call["additional_t_cond"] = draw.integers(2)
    return Native(call, _packed_words(c["in_channels"], PROMPT_TOKENS))


@native("SanaTransformer2DModel")
def sana(model: Any, draw: Draw) -> Native:
    """SanaPipeline: sample_size latents of 32 px, 300 tokens of Gemma."""
    c = model.config
    size = (c["in_channels"], c["sample_size"], c["sample_size"])
    call = {
        "hidden_states": draw.normal(*size),
        "encoder_hidden_states": draw.normal(300, c["caption_channels"]),
        "encoder_attention_mask": mask(draw, 300).to(draw.dtype),
        "timestep": times(draw),
    }
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 4.5)
    return Native(call, image_words(size, 32, text_words(300)))


@native("Lumina2Transformer2DModel")
def lumina2(model: Any, draw: Draw) -> Native:
    """Lumina2Pipeline: sample_size latents of 8 px, 256 tokens; no more than there are positions."""
    c = model.config
    tokens = min(256, c["axes_lens"][0] - 1)
    side = min(c["sample_size"], c["patch_size"] * min(c["axes_lens"][1:]))
    size = (c["in_channels"], side, side)
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw, 1.0),
        "encoder_hidden_states": draw.normal(tokens, c["cap_feat_dim"]),
        "encoder_attention_mask": mask(draw, tokens),
    }
    return Native(call, image_words(size, 8, text_words(tokens)))


@native("LuminaNextDiT2DModel")
def lumina_next(model: Any, draw: Draw) -> Native:
    """LuminaPipeline: sample_size latents of 8 px, 256 tokens, a table of 384 x 384 positions."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    c = model.config
    size = (c["in_channels"], c["sample_size"], c["sample_size"])
    width = c["hidden_size"] // c["num_attention_heads"]
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw, 1.0),
        "encoder_hidden_states": draw.normal(256, c["cross_attention_dim"]),
        "encoder_mask": mask(draw, 256, torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(width, 384, 384).to(draw.device),
        "cross_attention_kwargs": {},
    }
    return Native(call, image_words(size, 8, text_words(256)))


@native("HunyuanDiT2DModel")
def hunyuan_dit(model: Any, draw: Draw) -> Native:
    """HunyuanDiTPipeline: sample_size latents of 8 px; 77 tokens of CLIP and 256 of T5, as the config says."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    c = model.config
    side, clip, t5 = c["sample_size"], c["text_len"], c["text_len_t5"]
    cells = side // c["patch_size"]
    tables = get_2d_rotary_pos_embed(
        model.inner_dim // model.num_heads, ((0, 0), (cells, cells)), (cells, cells), output_type="pt"
    )
    call = {
        "hidden_states": draw.normal(c["in_channels"], side, side),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(clip, c["cross_attention_dim"]),
        "text_embedding_mask": mask(draw, clip, torch.long),
        "encoder_hidden_states_t5": draw.normal(t5, c["cross_attention_dim_t5"]),
        "text_embedding_mask_t5": mask(draw, t5, torch.long),
        "image_rotary_emb": tuple(table.to(draw.device) for table in tables),
    }
    if c["use_style_cond_and_image_meta_size"]:
        call["image_meta_size"] = torch.cat([*image_sizes(draw, 8 * side).values()], dim=1)
        call["style"] = draw.integers(1)
    return Native(call, image_words((c["in_channels"], side, side), 8, text_words(clip, t5)))


@native("CogView4Transformer2DModel", "CogView3PlusTransformer2DModel")
def cogview(model: Any, draw: Draw) -> Native:
    """CogView3PlusPipeline: 224 tokens; CogView4Pipeline: as long as the prompt. sample_size latents of 8 px."""
    c = model.config
    tokens = PROMPT_TOKENS if "rope_axes_dim" in c else 224
    size = (c["in_channels"], c["sample_size"], c["sample_size"])
    call = {
        "hidden_states": draw.normal(*size),
        "encoder_hidden_states": draw.normal(tokens, c["text_embed_dim"]),
        "timestep": times(draw),
        **image_sizes(draw, 8 * c["sample_size"]),
    }
    return Native(call, image_words(size, 8, text_words(tokens)))


@native("ZImageTransformer2DModel")
def z_image(model: Any, draw: Draw) -> Native:
    """ZImagePipeline: 1024 px, latents of 8 px; the text is as long as the prompt; lists in place of a batch."""
    c = model.config
    patch, frame_patch = c["all_patch_size"][0], c["all_f_patch_size"][0]
    tokens = min(PROMPT_TOKENS, c["axes_lens"][0] // 2)
    side = min(SIDE, patch * min(c["axes_lens"][1:]))
    call = {
        "x": list(draw.normal(c["in_channels"], frame_patch, side, side)),
        "t": times(draw, 1.0),
        "cap_feats": list(draw.normal(tokens, c["cap_feat_dim"])),
        "patch_size": patch,
        "f_patch_size": frame_patch,
    }
    return Native(call, image_words((c["in_channels"], 1, side, side), 8, text_words(tokens)))


@native("HunyuanImageTransformer2DModel")
def hunyuan_image(model: Any, draw: Draw) -> Native:
    """HunyuanImagePipeline: 2048 px, latents of 32 px; 1000 text tokens, and 128 of the glyphs to be drawn.

    The refiner works at the same size on latents of 16 px with an axis of frames.
    """
    c = model.config
    refines = len(c["patch_size"]) == 3
    side, factor = (128, 16) if refines else (64, 32)
    size = (c["in_channels"], *([1] if refines else []), side, side)
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(1000, c["text_embed_dim"]),
        "encoder_attention_mask": mask(draw, 1000, torch.long),
    }
    lengths = [1000]
    if width := c.get("text_embed_2_dim"):
        lengths.append(128)
        call["encoder_hidden_states_2"] = draw.normal(128, width)
        call["encoder_attention_mask_2"] = mask(draw, 128, torch.long)
    if c["guidance_embeds"]:
        call["guidance"] = times(draw, 3500.0)
    if c["use_meanflow"]:
        call["timestep_r"] = times(draw)
    return Native(call, image_words(size, factor, text_words(*lengths)))
