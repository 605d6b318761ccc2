"""Flux and its nearest relatives."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLFlux2

from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.decoders import kl, shifted, wan
from tests.pipelines.encoders import WIDTH, clip, language, mistral, t5
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 16, "width": 24}


def flux(guidance: bool) -> Any:
    name = "flux-guidance" if guidance else "flux"
    return assemble(
        "FluxPipeline",
        scheduler=flow(shift=3.0, use_dynamic_shifting=guidance),
        vae=shifted(channels=2),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=denoiser(name, in_channels=8, pooled_projection_dim=20),
    )


def chroma() -> Any:
    return assemble(
        "ChromaPipeline",
        scheduler=flow(),
        vae=shifted(channels=2),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=denoiser("chroma", in_channels=8),
    )


def flux2(cls: str, text_encoder: Any, model: str, **more: Any) -> Any:
    """The latents' statistics are buffers of the autoencoder, and the text is three layers of a language model."""
    return assemble(
        cls,
        scheduler=flow(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=2,
            norm_num_groups=4,
            sample_size=16,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser(model, in_channels=8, joint_attention_dim=3 * WIDTH),
        **more,
    )


def klein() -> Any:
    return flux2("Flux2KleinPipeline", language("Qwen3ForCausalLM", "Qwen3Config"), "flux2-klein")


def bria() -> Any:
    return assemble(
        "BriaPipeline",
        transformer=denoiser("bria", in_channels=8),
        scheduler=flow(use_dynamic_shifting=True),
        vae=kl(channels=2, stages=4),
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


def fibo() -> Any:
    """The text's last two layers go in at once, and one layer into each block."""
    return assemble(
        "BriaFiboPipeline",
        transformer=denoiser("bria-fibo", in_channels=5, joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH),
        scheduler=flow(use_dynamic_shifting=True),
        vae=wan(5),
        text_encoder=language("SmolLM3ForCausalLM", "SmolLM3Config", head_dim=10),
        tokenizer=tokenizer(end=False),
    )


PIPELINES = {
    "flux": text(lambda: flux(True), max_sequence_length=24, **SIZE),
    "flux-schnell": text(lambda: flux(False), max_sequence_length=24, **SIZE),
    # Guidance by a second call.
    "flux-true-guidance": text(
        lambda: flux(True), max_sequence_length=24, true_cfg_scale=3.0, negative_prompt="blurry", **SIZE
    ),
    "chroma": text(chroma, max_sequence_length=24, guidance_scale=4.0, **SIZE),
    "flux2": text(
        lambda: flux2("Flux2Pipeline", mistral(), "flux2"),
        max_sequence_length=400,
        text_encoder_out_layers=(0, 1, 2),
        **SIZE,
    ),
    "flux2-klein": text(
        klein, guidance_scale=4.0, max_sequence_length=96, text_encoder_out_layers=(0, 1, 2), **SIZE
    ),
    "bria": text(bria, max_sequence_length=24, height=32, width=48),
    "bria-fibo": text(fibo, negative_prompt="blurry", height=32, width=64),
}
