"""What a native input is, and the words for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.models.families import Draw
from pruning.registry import Registry

PROMPT_TOKENS = 128
"""Length of a text where the pipeline neither pads nor cuts it to a fixed one: a prompt of some hundred words."""


FLEX_ATTENTION = "its attention is flex attention, whose products PyTorch does not count"

WITHOUT = {
    "AnyFlowFARTransformer3DModel": FLEX_ATTENTION,
    "Kandinsky6SRTransformer3DModel": FLEX_ATTENTION,
    "WanAnimate2Transformer3DModel": "it reads keys and values that an earlier call has stored",
    "SanaWMLTX2RefinerTransformer3DModel": "it reads keys and values that an earlier call has stored",
    "RFD4ProteinaTransformer": "a protein is as long as it is asked to be",
    "DreamLiteTransformer2DModel": "it is a part of DreamLiteUNetModel",
    "TransformerTemporalModel": "it is a part of UNet3DConditionModel",
}
"""Denoiser classes of diffusers without a native input, and why."""


@dataclass(frozen=True)
class Native:
    """A call of a denoiser at the size that it was made for.

    Attributes:
        call: Keyword arguments of the call.
        words: What is assumed of one sample: shapes, pixels, frames, text.
    """

    call: dict[str, Any]
    words: str


Maker = Callable[[Any, Draw], Native]
"""(model, draw) -> its native input."""

NATIVE: Registry[Maker] = Registry("denoiser class with a native input")


def native(*classes: str) -> Callable[[Maker], Maker]:
    """Return a decorator that files the maker of native inputs of these classes."""

    def decorate(maker: Maker) -> Maker:
        for name in classes:
            NATIVE.register(name)(maker)
        return maker

    return decorate


def shape(*sizes: int) -> str:
    """Return sizes as a reader would write them."""
    return " x ".join(map(str, sizes))


def image_words(latents: Sequence[int], factor: int, *more: str) -> str:
    """Return the words for latents that end in (H, W), with the pixels of the image that they stand for."""
    height, width = latents[-2:]
    return ", ".join((f"{shape(*latents)} latents ({width * factor} x {height * factor} px)", *more))


def video_words(latents: Sequence[int], factor: int, frames: int, *more: str) -> str:
    """Return the words for latents that end in (H, W), with the frames and pixels of the video that they stand for."""
    height, width = latents[-2:]
    pixels = f"{frames} frames of {width * factor} x {height * factor} px"
    return ", ".join((f"{shape(*latents)} latents ({pixels})", *more))


def cells_of(frames: int, height: int, width: int, time: int = 4, factor: int = 8) -> tuple[int, int, int]:
    """Return the latents of a video: after the first frame one for `time` frames, one for `factor` pixels of a side."""
    return (frames - 1) // time + 1, height // factor, width // factor


def text_words(*tokens: int) -> str:
    """Return the words for so many text tokens, of one or more encoders."""
    return f"{' + '.join(map(str, tokens))} text tokens"


def times(draw: Draw, unit: float = 1000.0) -> Tensor:
    """Return a time a sample, shape (B,), where noise begins at `unit`."""
    return draw.uniform() * unit


def text_to(draw: Draw, latents: Sequence[int], text: Sequence[int], unit: float = 1000.0) -> dict[str, Any]:
    """Return latents, a text and a time, of shapes (B, *latents), (B, *text) and (B,), by the names most models use."""
    return {
        "hidden_states": draw.normal(*latents),
        "encoder_hidden_states": draw.normal(*text),
        "timestep": times(draw, unit),
    }


def _with_values(draw: Draw) -> torch.device | None:
    """Return where a table lies whose values decide what a model computes: for one on the meta device, not there."""
    return None if draw.device.type == "meta" else draw.device


def mask(draw: Draw, tokens: int, dtype: torch.dtype = torch.bool) -> Tensor:
    """Return a mask (B, tokens) that leaves everything in; for a model on the meta device one with values."""
    return torch.ones(draw.batch_size, tokens, dtype=dtype, device=_with_values(draw))


def zeros(draw: Draw, *shape: int) -> Tensor:
    """Return zeros of shape (B, *shape); for a model on the meta device they have values."""
    return torch.zeros(draw.batch_size, *shape, dtype=draw.dtype, device=_with_values(draw))


def indices(draw: Draw, end: int, start: int = 0) -> Tensor:
    """Return the numbers from `start` to below `end`, int64; for a model on the meta device they have values."""
    return torch.arange(start, end, device=_with_values(draw))


def arguments_of(model: nn.Module) -> set[str]:
    """Return the names of the arguments that a model can be called with."""
    return set(inspect.signature(model.forward).parameters)


def grid(draw: Draw, *sizes: int) -> Tensor:
    """Return the position of every cell of a grid, shape (cells, axes), in floating point."""
    axes = [torch.arange(size, device=draw.device, dtype=torch.float32) for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(sizes))


def image_sizes(draw: Draw, side: int) -> dict[str, Tensor]:
    """Return the three size conditions of SDXL's kind for an uncropped square image, each (B, 2)."""
    full = torch.tensor([[float(side), float(side)]]).to(draw.device, draw.dtype).expand(draw.batch_size, -1)
    return {"original_size": full, "target_size": full, "crop_coords": torch.zeros_like(full)}
