"""Denoisers whose config says the size of their input, and UNets that make images."""

from __future__ import annotations

from typing import Any

from pruning.models.families import FAMILIES, TEXT_TOKENS, Draw, denoiser_call, family_of, sample_shape
from pruning.models.native.base import Native, image_words, mask, native, shape, text_words, times


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
