"""Flux and what was built on it: blocks of two streams, then blocks of one with a fused output."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

TEXT = 20
TOKENS = 7
SIDE = 4
WIDTH = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "num_layers": 3,
    "num_single_layers": 4,
    "in_channels": 6,
}
CONFIG = {**WIDTH, "joint_attention_dim": TEXT, "axes_dims_rope": (2, 2, 4)}


def grid(*axes: int, columns: int, first: int = 1) -> torch.Tensor:
    """Return position ids of a grid in the columns from `first` on, zero elsewhere."""
    ids = torch.cartesian_prod(*(torch.arange(size) for size in axes)).float().reshape(-1, len(axes))
    return torch.nn.functional.pad(ids, (first, columns - first - len(axes)))


def _tokens(draw: Draw, channels: int = 6) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, SIDE * SIDE, channels),
        "encoder_hidden_states": draw.normal(BATCH, TOKENS, TEXT),
        "timestep": draw.times(1.0),
        "img_ids": grid(SIDE, SIDE, columns=3),
        "txt_ids": torch.zeros(TOKENS, 3),
    }


def _flux(draw: Draw) -> dict[str, Any]:
    return {**_tokens(draw), "pooled_projections": draw.normal(BATCH, 10)}


def _flux_dev(draw: Draw) -> dict[str, Any]:
    return {**_flux(draw), "guidance": torch.tensor([3.5, 1.5])}


def _flux2(draw: Draw, guidance: bool = True) -> dict[str, Any]:
    call = {
        **_tokens(draw),
        "img_ids": grid(SIDE, SIDE, columns=4).expand(BATCH, -1, -1),
        "txt_ids": grid(TOKENS, columns=4, first=3).expand(BATCH, -1, -1),
    }
    return {**call, "guidance": torch.tensor([4.0, 1.5])} if guidance else call


def _flux3(draw: Draw) -> dict[str, Any]:
    return {
        **_tokens(draw),
        "img_ids": grid(SIDE, SIDE, columns=4),
        "txt_ids": grid(TOKENS, columns=4, first=3),
        "image_cond_hidden_states": draw.normal(BATCH, 4, 10),
        "image_cond_ids": grid(1, 2, 2, columns=4, first=0).add(10.0),
    }


def _chroma(draw: Draw) -> dict[str, Any]:
    mask = torch.ones(BATCH, TOKENS + SIDE * SIDE)
    mask[1, 4:TOKENS] = 0
    return {**_tokens(draw), "attention_mask": mask}


def _fibo(draw: Draw) -> dict[str, Any]:
    return {**_tokens(draw), "text_encoder_layers": [draw.normal(BATCH, TOKENS, 14) for _ in range(3 + 4)]}


_FLUX2 = {
    **WIDTH,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (2, 2, 2, 2),
    "timestep_guidance_channels": 16,
}
_FLUX3 = {**WIDTH, "joint_attention_dim": TEXT, "axes_dims_rope": (2, 2, 2, 2), "cond_in_channels": 10}
_APPROXIMATOR = {"approximator_num_channels": 16, "approximator_hidden_dim": 28, "approximator_layers": 3}

MODELS = {
    # FLUX.1-schnell and FLUX.1-dev.
    "flux": Tiny("FluxTransformer2DModel", {**CONFIG, "pooled_projection_dim": 10}, _flux),
    "flux-guidance": Tiny(
        "FluxTransformer2DModel", {**CONFIG, "pooled_projection_dim": 10, "guidance_embeds": True}, _flux_dev
    ),
    # FLUX.1-Fill: what goes in is wider than what comes out.
    "flux-fill": Tiny(
        "FluxTransformer2DModel",
        {
            **CONFIG,
            "pooled_projection_dim": 10,
            "guidance_embeds": True,
            "in_channels": 15,
            "out_channels": 6,
        },
        lambda draw: {**_flux_dev(draw), "hidden_states": draw.normal(BATCH, SIDE * SIDE, 15)},
    ),
    "flux2": Tiny("Flux2Transformer2DModel", _FLUX2, _flux2),
    # FLUX.2-klein has no guidance.
    "flux2-klein": Tiny(
        "Flux2Transformer2DModel",
        {**_FLUX2, "guidance_embeds": False},
        lambda draw: _flux2(draw, guidance=False),
    ),
    "flux3": Tiny("Flux3Transformer2DModel", _FLUX3, _flux3),
    # Distilled for few steps: it is told the time to jump to.
    "flux3-flow-map": Tiny(
        "Flux3Transformer2DModel",
        {**_FLUX3, "flow_map": True},
        lambda draw: {**_flux3(draw), "target_timestep": draw.times(0.5)},
    ),
    "chroma": Tiny("ChromaTransformer2DModel", {**CONFIG, **_APPROXIMATOR}, _chroma),
    "bria": Tiny("BriaTransformer2DModel", CONFIG, _tokens),
    "bria-fibo": Tiny("BriaFiboTransformer2DModel", {**CONFIG, "text_encoder_dim": 14}, _fibo),
}
