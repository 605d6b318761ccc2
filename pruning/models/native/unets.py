"""Denoisers whose config says the size of their input, and UNets that make images and videos."""

from __future__ import annotations

import math
from typing import Any

import torch

from pruning.errors import PruningError
from pruning.models.families import (
    FAMILIES,
    TEXT_TOKENS,
    Draw,
    added_conditions,
    denoiser_call,
    family_of,
    sample_shape,
)
from pruning.models.native.base import (
    NATIVE,
    PROMPT_TOKENS,
    Native,
    image_words,
    mask,
    native,
    shape,
    text_words,
    times,
    video_words,
)


@native(*FAMILIES)
def family(model: Any, draw: Draw) -> Native:
    """The denoisers that calibration knows: sample_size of the config; 77 tokens of CLIP where a text is taken."""
    size = sample_shape(model)
    sample, timestep = draw.normal(*size), draw.integers(1000)
    call = denoiser_call(model, sample, timestep, family_of(model).conditioning(model, draw))
    more = [text_words(TEXT_TOKENS)] if call.get("encoder_hidden_states") is not None else []
    if size[0] in (1, 3):  # pixels, or latents of three channels
        return Native(call, ", ".join((f"{shape(*size)} samples", *more)))
    return Native(call, image_words(size, 8, *more))


@native("Kandinsky3UNet")
def kandinsky3(model: Any, draw: Draw) -> Native:
    """Kandinsky3Pipeline: 1024 px, latents of 8 px, 128 tokens of T5."""
    c = model.config
    size = (c["in_channels"], 128, 128)
    call = {
        "sample": draw.normal(*size),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(128, c["encoder_hid_dim"]),
        "encoder_attention_mask": mask(draw, 128).to(draw.dtype),
    }
    return Native(call, image_words(size, 8, text_words(128)))


@native("DreamLiteUNetModel")
def dreamlite(model: Any, draw: Draw) -> Native:
    """DreamLitePipeline: 1024 px, latents of 8 px and beside them those of a picture to edit; the prompt's text."""
    c = model.config
    call: dict[str, Any] = {
        "sample": draw.normal(c["in_channels"], 128, 2 * 128),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(PROMPT_TOKENS, c["encoder_hid_dim"] or c["cross_attention_dim"]),
    }
    if c["addition_embed_type"] is not None:
        call["added_cond_kwargs"] = {"time_ids": torch.full_like(times(draw), 1024)[:, None].expand(-1, 2)}
    words = image_words((c["in_channels"], 128, 128), 8, "as many of a picture", text_words(PROMPT_TOKENS))
    return Native(call, words)


@native("StableCascadeUNet")
def stable_cascade(model: Any, draw: Draw) -> Native:
    """StableCascadePriorPipeline: 1024 px, latents of 42.67 px, 77 tokens of CLIP; the decoder: 10.67 to a prior's."""
    c = model.config
    coarse = math.ceil(1024 / 42.67)
    side = coarse if c["effnet_in_channels"] is None else int(coarse * 10.67)
    size = (c["in_channels"], side, side)
    call = {
        "sample": draw.normal(*size),
        "timestep_ratio": times(draw, 1.0),
        "clip_text_pooled": draw.normal(1, c["clip_text_pooled_in_channels"]),
    }
    more = []
    if c["effnet_in_channels"] is not None:
        call["effnet"] = draw.normal(c["effnet_in_channels"], coarse, coarse)
    if c["clip_text_in_channels"] is not None:
        call["clip_text"] = draw.normal(TEXT_TOKENS, c["clip_text_in_channels"])
        more.append(text_words(TEXT_TOKENS))
    if c["clip_image_in_channels"] is not None:
        call["clip_img"] = draw.normal(1, c["clip_image_in_channels"])
    return Native(call, ", ".join((f"{shape(*size)} latents (1024 x 1024 px)", *more)))


@native("UVit2DModel")
def amused(model: Any, draw: Draw) -> Native:
    """AmusedPipeline: sample_size tokens of a vector-quantised image, 16 px each; 77 tokens of CLIP, five sizes."""
    c = model.config
    side = c["sample_size"]
    call = {
        "input_ids": torch.zeros(draw.batch_size, side, side, dtype=torch.long, device=draw.device),
        "encoder_hidden_states": draw.normal(TEXT_TOKENS, c["encoder_hidden_size"]),
        "pooled_text_emb": draw.normal(c["cond_embed_dim"]),
        "micro_conds": draw.normal(c["micro_cond_embed_dim"] // c["micro_cond_encode_dim"]),
    }
    return Native(
        call, f"{shape(side, side)} tokens ({16 * side} x {16 * side} px), {text_words(TEXT_TOKENS)}"
    )


@native("PriorTransformer")
def prior(model: Any, draw: Draw) -> Native:
    """KandinskyPriorPipeline: an embedding of CLIP, num_embeddings text tokens; ShapEPipeline: so many, and no text."""
    c = model.config
    width, tokens = c["embedding_dim"], c["num_embeddings"]
    text = c["encoder_hid_proj_type"] is not None
    call = {
        "hidden_states": draw.normal(width) if text else draw.normal(tokens, width),
        "timestep": times(draw),
        "proj_embedding": draw.normal(c["embedding_proj_dim"] or width),
    }
    if not text:
        return Native(call, f"{shape(tokens, width)} samples")
    call |= {"encoder_hidden_states": draw.normal(tokens, width), "attention_mask": mask(draw, tokens)}
    return Native(call, f"{width} samples, {text_words(tokens)}")


@native("Transformer2DModel")
def transformer2d(model: Any, draw: Draw) -> Native:
    """What this class was before it was a part of UNets: DiT, PixArt, and VQ-Diffusion with 77 tokens of CLIP."""
    c = model.config
    side = c["sample_size"]
    if c["norm_type"] == "ada_norm_single":
        return NATIVE["PixArtTransformer2DModel"](model, draw)
    if c["norm_type"] == "ada_norm_zero":
        size, classes = (c["in_channels"], side, side), c["num_embeds_ada_norm"]
        call = {
            "hidden_states": draw.normal(*size),
            "timestep": draw.integers(1000),
            "class_labels": draw.integers(classes),
        }
        return Native(call, image_words(size, 8))
    if c["num_vector_embeds"] is None:
        raise PruningError("Transformer2DModel without patches or tokens is a part of a UNet")
    call = {
        "hidden_states": torch.zeros(draw.batch_size, side * side, dtype=torch.long, device=draw.device),
        "encoder_hidden_states": draw.normal(TEXT_TOKENS, c["cross_attention_dim"]),
        "timestep": torch.zeros((), dtype=torch.long, device=draw.device),
    }
    return Native(call, f"{side * side} tokens ({8 * side} x {8 * side} px), {text_words(TEXT_TOKENS)}")


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


def _clip(model: Any, draw: Draw, frames: int, height: int, width: int) -> tuple[dict[str, Any], str]:
    """Return the arguments of a UNet that makes videos, in latents of 8 px, and the words; 77 tokens of CLIP."""
    size = (model.config["in_channels"], frames, height, width)
    call = {
        "sample": draw.normal(*size),
        "timestep": times(draw),
        "encoder_hidden_states": draw.normal(TEXT_TOKENS, model.config["cross_attention_dim"]),
    }
    return call, video_words(size, 8, frames, text_words(TEXT_TOKENS))


@native("UNet3DConditionModel", "UNetMotionModel")
def unet3d(model: Any, draw: Draw) -> Native:
    """TextToVideoSDPipeline and AnimateDiffPipeline, which repeats the text by frame: 16 frames, sample_size latents.

    No more frames than there are positions.
    """
    c = model.config
    side, frames = c["sample_size"], min(16, c.get("motion_max_seq_length", 16))
    call, words = _clip(model, draw, frames, side, side)
    if "motion_max_seq_length" in c:
        call["encoder_hidden_states"] = call["encoder_hidden_states"].repeat_interleave(frames, dim=0)
    if c.get("addition_embed_type") == "text_time":
        call["added_cond_kwargs"] = added_conditions(model, draw)
    return Native(call, words)


@native("I2VGenXLUNet")
def i2vgen_xl(model: Any, draw: Draw) -> Native:
    """I2VGenXLPipeline: 16 frames of 1280 x 704 px and as many of an image, which is one token beside the text."""
    c = model.config
    call, words = _clip(model, draw, 16, 704 // 8, 1280 // 8)
    call |= {
        "fps": torch.full_like(times(draw), 16),
        "image_latents": draw.normal(c["in_channels"], 16, 704 // 8, 1280 // 8),
        "image_embeddings": draw.normal(1, c["cross_attention_dim"]),
    }
    return Native(call, f"{words}, 1 image token")
