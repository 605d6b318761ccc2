"""Transformers that take an image as a sequence: from Flux on, 2 x 2 latents of 8 px are a token.

All work on 1024 x 1024 px unless it says otherwise; of the texts, each has a length of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruning.models.families import Draw
from pruning.models.native.base import (
    PROMPT_TOKENS,
    Native,
    arguments_of,
    grid,
    indices,
    mask,
    native,
    text_words,
    times,
)

CELLS = 64
"""Tokens of a side at 1024 px."""

FLUX_TEXT = {
    "FluxTransformer2DModel": 512,
    "ChromaTransformer2DModel": 512,
    "LongCatImageTransformer2DModel": 512,
    "OvisImageTransformer2DModel": 256,
    "BriaTransformer2DModel": 128,
    "BriaFiboTransformer2DModel": PROMPT_TOKENS,
}
"""Text tokens of FluxPipeline and of those after it; only BriaFiboPipeline's text is as long as the prompt."""


def _packed(draw: Draw, channels: int, width: int, tokens: int) -> dict[str, Any]:
    """Return the tokens of an image and of a text: what is made after Flux takes both so."""
    return {
        "hidden_states": draw.normal(CELLS * CELLS, channels),
        "encoder_hidden_states": draw.normal(tokens, width),
        "timestep": times(draw, 1.0),
    }


def _native(call: dict[str, Any], tokens: int, cells: int = CELLS) -> Native:
    channels = call["hidden_states"].shape[-1]
    latents = f"{cells * cells} x {channels} packed latents ({16 * cells} x {16 * cells} px)"
    return Native(call, f"{latents}, {text_words(tokens)}")


@native(*FLUX_TEXT)
def flux(model: Any, draw: Draw) -> Native:
    """FluxPipeline and those after it, which differ in what else they tell. Fill and Depth take more channels."""
    c, told = model.config, arguments_of(model)
    tokens = FLUX_TEXT[type(model).__name__]
    call = _packed(draw, c["in_channels"], c["joint_attention_dim"], tokens)
    call["img_ids"] = torch.nn.functional.pad(grid(draw, CELLS, CELLS), (1, 0))
    call["txt_ids"] = torch.zeros(tokens, 3, device=draw.device)
    if "pooled_projections" in told and c["pooled_projection_dim"]:
        call["pooled_projections"] = draw.normal(c["pooled_projection_dim"])
    if c.get("guidance_embeds"):
        call["guidance"] = times(draw, 3.5)
    if "attention_mask" in told:
        call["attention_mask"] = mask(draw, tokens + CELLS * CELLS)
    if "text_encoder_layers" in told:  # what the text encoder has in each of its layers, for each block
        blocks = range(c["num_layers"] + c["num_single_layers"])
        call["text_encoder_layers"] = [draw.normal(tokens, c["text_encoder_dim"]) for _ in blocks]
    return _native(call, tokens)


@native("Flux2Transformer2DModel", "Flux3Transformer2DModel")
def flux2(model: Any, draw: Draw) -> Native:
    """Flux2Pipeline: 512 text tokens, with their place as fourth position; Flux 3: the prompt, a multiple of 80."""
    c = model.config
    tokens = 160 if "cond_in_channels" in c else 512
    call = _packed(draw, c["in_channels"], c["joint_attention_dim"], tokens)
    call["img_ids"] = torch.nn.functional.pad(grid(draw, CELLS, CELLS), (1, 1))
    call["txt_ids"] = torch.nn.functional.pad(grid(draw, tokens), (3, 0))
    if c.get("guidance_embeds"):
        call["guidance"] = times(draw, 4.0)
    if c.get("flow_map"):
        call["target_timestep"] = times(draw, 1.0)
    return _native(call, tokens)


@native("QwenImageTransformer2DModel", "QwenImage21Transformer2DModel", "NucleusMoEImageTransformer2DModel")
def qwen_image(model: Any, draw: Draw) -> Native:
    """QwenImagePipeline: the text is as long as the prompt. Version 2.1 has latents of 16 px, four of them a slot."""
    c, told = model.config, arguments_of(model)
    tokens, shape = PROMPT_TOKENS, (1, CELLS, CELLS)
    call = _packed(draw, c["in_channels"], c.get("joint_attention_dim") or c["context_in_dim"], tokens)
    call["encoder_hidden_states_mask"] = mask(draw, tokens)
    one = "Nucleus" in type(model).__name__  # one image a sample, not in a list
    call["img_shapes"] = [shape if one else [shape]] * draw.batch_size
    if "img_mask" in told:
        slots = [mask(draw, tokens).logical_not(), mask(draw, CELLS * CELLS // 4)]
        call["img_mask"] = torch.cat(slots, dim=1)
    if c.get("guidance_embeds"):
        call["guidance"] = times(draw, 1.0)
    if c.get("use_additional_t_cond"):
        call["additional_t_cond"] = draw.integers(2)
    return _native(call, tokens)


@native("Krea2Transformer2DModel")
def krea2(model: Any, draw: Draw) -> Native:
    """Krea2Pipeline: 512 text tokens, each from several layers of the text encoder."""
    c = model.config
    call = _packed(draw, c["in_channels"], c["text_hidden_dim"], 512)
    call["encoder_hidden_states"] = draw.normal(512, c["num_text_layers"], c["text_hidden_dim"])
    call["encoder_attention_mask"] = mask(draw, 512)
    call["position_ids"] = _positions(draw, 512, CELLS)
    return _native(call, 512)


@native("Ideogram4Transformer2DModel")
def ideogram4(model: Any, draw: Draw) -> Native:
    """Ideogram4Pipeline: 2048 x 2048 px, 2048 text tokens; both are one sequence, as wide as either."""
    c = model.config
    tokens, cells = 2048, 2 * CELLS
    length = tokens + cells * cells
    places = indices(draw, length).expand(draw.batch_size, -1)
    call = {
        "hidden_states": draw.normal(length, c["in_channels"]),
        "encoder_hidden_states": draw.normal(length, c["llm_features_dim"]),
        "timestep": times(draw, 1.0),
        "position_ids": _positions(draw, tokens, cells).expand(draw.batch_size, -1, -1),
        "segment_ids": torch.ones_like(places),
        "indicator": torch.where(places < tokens, 3, 2),  # text, image
    }
    return _native(call, tokens, cells)


def _positions(draw: Draw, tokens: int, cells: int) -> Tensor:
    """Return the position (time, row, column) of text tokens and of the cells of an image after them."""
    text = indices(draw, tokens)[:, None].expand(-1, 3)
    image = torch.cartesian_prod(indices(draw, 1), indices(draw, cells), indices(draw, cells)) + tokens
    return torch.cat([text, image])
