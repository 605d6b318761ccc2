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
    arguments_of,
    image_sizes,
    image_words,
    indices,
    mask,
    native,
    shape,
    text_to,
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
    call = text_to(draw, size, (tokens, c["joint_attention_dim"]))
    call["pooled_projections"] = draw.normal(c["pooled_projection_dim"])
    return Native(call, image_words(size, 8, text_words(77, 256)))


@native("AuraFlowTransformer2DModel")
def auraflow(model: Any, draw: Draw) -> Native:
    """AuraFlowPipeline: 1024 px, 256 tokens; no more patches than there are positions."""
    c = model.config
    side = min(SIDE, math.isqrt(c["pos_embed_max_size"]) * c["patch_size"])
    size = (c["in_channels"], side, side)
    call = text_to(draw, size, (256, c["joint_attention_dim"]), 1.0)
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
    call = text_to(draw, size, (tokens, c["caption_channels"]))
    call["encoder_attention_mask"] = mask(draw, tokens).to(draw.dtype)
    call["added_cond_kwargs"] = told if c["use_additional_conditions"] else dict.fromkeys(told)
    return Native(call, image_words(size, 8, text_words(tokens)))


@native("SanaTransformer2DModel")
def sana(model: Any, draw: Draw) -> Native:
    """SanaPipeline: sample_size latents of 32 px, 300 tokens of Gemma."""
    c = model.config
    size = (c["in_channels"], c["sample_size"], c["sample_size"])
    call = text_to(draw, size, (300, c["caption_channels"]))
    call["encoder_attention_mask"] = mask(draw, 300).to(draw.dtype)
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
    call = text_to(draw, size, (tokens, c["cap_feat_dim"]), 1.0)
    call["encoder_attention_mask"] = mask(draw, tokens)
    return Native(call, image_words(size, 8, text_words(tokens)))


@native("LuminaNextDiT2DModel")
def lumina_next(model: Any, draw: Draw) -> Native:
    """LuminaPipeline: sample_size latents of 8 px, 256 tokens, a table of 384 x 384 positions."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    c = model.config
    size = (c["in_channels"], c["sample_size"], c["sample_size"])
    width = c["hidden_size"] // c["num_attention_heads"]
    call = text_to(draw, size, (256, c["cross_attention_dim"]), 1.0) | {
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
    call = text_to(draw, (c["in_channels"], side, side), (clip, c["cross_attention_dim"])) | {
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
    call = text_to(draw, size, (tokens, c["text_embed_dim"])) | image_sizes(draw, 8 * c["sample_size"])
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
    call = text_to(draw, size, (1000, c["text_embed_dim"]))
    call["encoder_attention_mask"] = mask(draw, 1000, torch.long)
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


@native("ErnieImageTransformer2DModel")
def ernie_image(model: Any, draw: Draw) -> Native:
    """ErnieImagePipeline: 1024 px, packed latents of 16 px; the text is as long as the prompt."""
    c = model.config
    size = (c["in_channels"], SIDE // 2, SIDE // 2)
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw),
        "text_bth": draw.normal(PROMPT_TOKENS, c["text_in_dim"]),
        "text_lens": mask(draw, PROMPT_TOKENS, torch.long).sum(dim=1),
    }
    return Native(call, image_words(size, 16, text_words(PROMPT_TOKENS)))


@native("GlmImageTransformer2DModel")
def glm_image(model: Any, draw: Draw) -> Native:
    """GlmImagePipeline: 1024 px, latents of 8 px, the prior's token for each patch; the prompt's length in glyphs."""
    c = model.config
    size, patches = (c["in_channels"], SIDE, SIDE), (SIDE // c["patch_size"]) ** 2
    sizes = image_sizes(draw, 8 * SIDE)
    call = text_to(draw, size, (PROMPT_TOKENS, c["text_embed_dim"])) | {
        "prior_token_id": torch.zeros(draw.batch_size, patches, dtype=torch.long, device=draw.device),
        "prior_token_drop": mask(draw, patches).logical_not(),
        "target_size": sizes["target_size"],
        "crop_coords": sizes["crop_coords"],
    }
    return Native(call, image_words(size, 8, text_words(PROMPT_TOKENS), f"{patches} tokens of the prior"))


@native("PRXTransformer2DModel")
def prx(model: Any, draw: Draw) -> Native:
    """PRXPipeline: 512 px, latents of 8 px, those of 32 channels of 32; PRXPixelPipeline: 1024 px; 256 text tokens."""
    c = model.config
    factor = {3: 1, 32: 32}.get(c["in_channels"], 8)
    side = 1024 if factor == 1 else 512 // factor
    size = (c["in_channels"], side, side)
    call = text_to(draw, size, (256, c["context_in_dim"]), 1.0) | {"attention_mask": mask(draw, 256)}
    if factor == 1:
        return Native(call, f"{shape(*size)} samples, {text_words(256)}")
    return Native(call, image_words(size, factor, text_words(256)))


@native("HiDreamImageTransformer2DModel")
def hidream(model: Any, draw: Draw) -> Native:
    """HiDreamImagePipeline: 1024 px, no more than its largest size; 128 tokens of T5 and of each layer of Llama."""
    c = model.config
    side = min(SIDE, c["patch_size"] * min(c["max_resolution"]))
    size, (t5, llama) = (c["in_channels"], side, side), c["caption_channels"]
    layers = range(max(c["llama_layers"]) + 1)
    call = {
        "hidden_states": draw.normal(*size),
        "timesteps": times(draw),
        "encoder_hidden_states_t5": draw.normal(128, t5),
        "encoder_hidden_states_llama3": torch.stack([draw.normal(128, llama) for _ in layers]),
        "pooled_embeds": draw.normal(c["text_emb_dim"]),
    }
    return Native(call, image_words(size, 8, text_words(128, 128)))


@native("BriaFibo2Transformer2DModel")
def bria_fibo2(model: Any, draw: Draw) -> Native:
    """BriaFibo2Pipeline: 1024 px, latents of 8 px, no more than positions; the prompt's text for each reader of it."""
    c = model.config
    side = min(SIDE, c["patch_size"] * min(c["axes_lens"][1:]))
    size, readers = (c["in_channels"], side, side), 1 + len(c["injection_layer_ids"])
    call = text_to(draw, size, (readers, PROMPT_TOKENS, c["cap_feat_dim"]), 1.0)
    call["encoder_attention_mask"] = mask(draw, PROMPT_TOKENS)
    return Native(call, image_words(size, 8, text_words(PROMPT_TOKENS)))


@native("OmniGenTransformer2DModel")
def omnigen(model: Any, draw: Draw) -> Native:
    """OmniGenPipeline: 1024 px, latents of 8 px, no more than positions, no picture; the prompt's text, causal."""
    c = model.config
    side = min(SIDE, c["patch_size"] * c["pos_embed_max_size"])
    size, patches = (c["in_channels"], side, side), (side // c["patch_size"]) ** 2
    length = PROMPT_TOKENS + 1 + patches  # the time is a token
    seen = (indices(draw, length) <= indices(draw, length)[:, None]) | (
        indices(draw, length)[:, None] >= length - patches
    )
    call = {
        "hidden_states": draw.normal(*size),
        "timestep": times(draw, 1.0),
        "input_ids": torch.ones(draw.batch_size, PROMPT_TOKENS, dtype=torch.long, device=draw.device),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": seen.to(draw.device).long().expand(draw.batch_size, -1, -1),
        "position_ids": indices(draw, length).expand(draw.batch_size, -1),
    }
    return Native(call, image_words(size, 8, text_words(PROMPT_TOKENS)))


@native("JoyImageEditTransformer3DModel", "JoyImageEditPlusTransformer3DModel")
def joyimage(model: Any, draw: Draw) -> Native:
    """JoyImageEditPipeline from a prompt alone: 1024 px, latents of 8 px as one of a list, or in patches of a row."""
    c = model.config
    size, told = (c["in_channels"], 1, SIDE, SIDE), arguments_of(model)
    call = text_to(draw, (1, *size), (PROMPT_TOKENS, c["text_dim"]))
    if "shape_list" in told:
        frames, height, width = c["patch_size"]
        cells = (1 // frames, SIDE // height, SIDE // width)
        call["hidden_states"] = draw.normal(math.prod(cells), c["in_channels"], *c["patch_size"])
        call["shape_list"] = [[cells]] * draw.batch_size
        call["encoder_hidden_states_mask"] = mask(draw, PROMPT_TOKENS, torch.long)
    return Native(call, image_words(size, 8, text_words(PROMPT_TOKENS), "no picture to edit"))
