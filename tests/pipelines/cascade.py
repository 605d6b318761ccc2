"""Stable Cascade: a prior from text to a small map, a decoder from that map to latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

from tests.pipelines.base import PROMPTS, TinyPipeline, assemble, denoiser, scheduler, text
from tests.pipelines.encoders import clip
from tests.pipelines.words import clip_tokenizer


def prior() -> Any:
    return assemble(
        "StableCascadePriorPipeline",
        tokenizer=clip_tokenizer(),
        text_encoder=clip(14, projection=10),
        prior=denoiser("stable-cascade"),
        scheduler=scheduler("DDPMWuerstchenScheduler"),
        resolution_multiple=8.0,
    )


def decoder() -> Any:
    return assemble(
        "StableCascadeDecoderPipeline",
        tokenizer=clip_tokenizer(),
        text_encoder=clip(14, projection=10),
        decoder=denoiser("stable-cascade-decoder"),
        scheduler=scheduler("DDPMWuerstchenScheduler"),
        vqgan=PaellaVQModel(latent_channels=4, embed_dim=8, bottleneck_blocks=1, num_vq_embeddings=12),
        latent_dim_scale=4.0,
    )


MAPS = torch.randn(3, 1, 6, 4, 4, generator=torch.Generator().manual_seed(5))

PIPELINES = {
    "cascade-prior": text(prior, guidance_scale=4.0, height=64, width=64),
    "cascade-decoder": TinyPipeline(
        decoder,
        [{"prompt": prompt, "image_embeddings": one} for prompt, one in zip(PROMPTS, MAPS, strict=True)],
        {"num_inference_steps": 4, "guidance_scale": 2.0},
        "text",
    ),
}
