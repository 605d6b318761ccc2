"""Public models at their real sizes, with random weights: configurations and calls of one sample."""

from __future__ import annotations

from typing import Any

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": (
        "UNet2DConditionModel",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    ),
    "sdxl": (
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "flux12b": ("FluxTransformer2DModel", {"guidance_embeds": True}),
}
"""Class of diffusers, and what differs from its defaults: Stable Diffusion 1.5, XL, and FLUX.1-dev."""

WORDS = {"sd15": 77, "sdxl": 77, "flux12b": 32}
"""Text tokens of a call."""


def class_of(name: str) -> Any:
    """Return the class of a model."""
    import diffusers

    return getattr(diffusers, CONFIGS[name][0])


def call(name: str, side: int, dtype: Any, *, time: float, seed: int = 0) -> dict[str, Any]:
    """Return a call of one sample.

    Args:
        name: One of `CONFIGS`.
        side: Of the latents.
        dtype: Type of the weights.
        time: From 0, the least noise, to 1.
        seed: Of what is random.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(dtype)

    if name == "flux12b":
        tokens = side // 2
        places = torch.zeros(tokens, tokens, 3)
        places[..., 1], places[..., 2] = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
        return {
            "hidden_states": noise(1, tokens * tokens, 64),
            "encoder_hidden_states": noise(1, WORDS[name], 4096),
            "pooled_projections": noise(1, 768),
            "img_ids": places.view(-1, 3),
            "txt_ids": torch.zeros(WORDS[name], 3),
            "guidance": torch.full((1,), 3.5),
            "timestep": torch.full((1,), time),
        }
    width = CONFIGS[name][1]["cross_attention_dim"]
    found = {
        "sample": noise(1, 4, side, side),
        "timestep": torch.full((1,), int(time * 1000)),
        "encoder_hidden_states": noise(1, WORDS[name], width),
    }
    if name == "sdxl":
        sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).to(dtype)
        found["added_cond_kwargs"] = {"text_embeds": noise(1, 1280), "time_ids": sizes}
    return found
