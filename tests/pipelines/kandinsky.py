"""Kandinsky 2.1, 2.2 and 3, Shap-E: priors from text to an embedding, decoders from that to an image."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers.pipelines.shap_e import ShapERenderer

from tests.pipelines.base import PROMPTS, TinyPipeline, assemble, denoiser, scheduler, text
from tests.pipelines.decoders import quantized
from tests.pipelines.encoders import clip, clip_processor, clip_vision, multilingual_clip, t5
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 16, "width": 16}


def embeddings(width: int) -> list[dict[str, Any]]:
    """Return image embeddings of three samples, as a prior would give them."""
    draws = torch.randn(3, 2, 1, width, generator=torch.Generator().manual_seed(5))
    return [{"image_embeds": one, "negative_image_embeds": zero} for one, zero in draws]


def prior(cls: str) -> Any:
    return assemble(
        cls,
        prior=denoiser("prior", num_embeddings=77),
        image_encoder=clip_vision(projection=20),
        text_encoder=clip(projection=20),
        tokenizer=clip_tokenizer(),
        scheduler=scheduler("UnCLIPScheduler", variance_type="fixed_small_log", prediction_type="sample"),
        image_processor=clip_processor(),
    )


def noise() -> Any:
    return scheduler("DDPMScheduler", beta_start=0.00085, beta_end=0.012, variance_type="learned_range")


def kandinsky21() -> Any:
    return assemble(
        "KandinskyPipeline",
        text_encoder=multilingual_clip(14, 20),
        tokenizer=tokenizer(begin=True),
        unet=denoiser("kandinsky21", out_channels=8),
        scheduler=noise(),
        movq=quantized(norm_type="spatial", vq_embed_dim=4, block_out_channels=(32, 32)),
    )


def kandinsky22() -> Any:
    return assemble(
        "KandinskyV22Pipeline",
        unet=denoiser("kandinsky22", out_channels=8),
        scheduler=noise(),
        movq=quantized(norm_type="spatial", vq_embed_dim=4, block_out_channels=(32, 32)),
    )


def kandinsky3() -> Any:
    return assemble(
        "Kandinsky3Pipeline",
        tokenizer=tokenizer(128),
        text_encoder=t5(28),
        unet=denoiser("kandinsky3"),
        scheduler=scheduler("DDPMScheduler", beta_schedule="squaredcos_cap_v2"),
        movq=quantized(stages=4),
    )


def shap_e() -> Any:
    """What is denoised are rows of the weights of a small network, which draws an object from its sides."""
    width, last = 8, 93
    renderer = ShapERenderer(
        param_shapes=((width, last), (width, width), (width, width), (width, width)),
        d_latent=20,
        d_hidden=width,
    )
    few = {"ray_batch_size": 64, "n_coarse_samples": 4, "n_fine_samples": 4}
    renderer.decode_to_image = functools.partial(renderer.decode_to_image, **few)
    return assemble(
        "ShapEPipeline",
        prior=denoiser("prior-shap-e", num_embeddings=4 * width),
        text_encoder=clip(projection=14),
        tokenizer=clip_tokenizer(),
        scheduler=scheduler(
            "HeunDiscreteScheduler",
            beta_schedule="exp",
            num_train_timesteps=1024,
            prediction_type="sample",
            use_karras_sigmas=True,
            clip_sample=True,
        ),
        shap_e_renderer=renderer,
    )


PIPELINES = {
    "kandinsky21-prior": text(lambda: prior("KandinskyPriorPipeline"), guidance_scale=4.0),
    "kandinsky22-prior": text(lambda: prior("KandinskyV22PriorPipeline"), guidance_scale=4.0),
    "kandinsky21": TinyPipeline(
        kandinsky21,
        [{"prompt": prompt, **images} for prompt, images in zip(PROMPTS, embeddings(20), strict=True)],
        {"num_inference_steps": 4, "guidance_scale": 4.0, **SIZE},
        "text",
    ),
    "kandinsky22": TinyPipeline(
        kandinsky22, embeddings(12), {"num_inference_steps": 4, "guidance_scale": 4.0, **SIZE}, "text"
    ),
    "shap-e": text(shap_e, guidance_scale=4.0, frame_size=4),
    "kandinsky3": text(kandinsky3, guidance_scale=3.0, height=64, width=64),
}
