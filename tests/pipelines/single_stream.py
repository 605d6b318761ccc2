"""Image models of one stream, or with language models as encoders, each of its own making."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipelines.base import PROMPTS, TinyPipeline, assemble, denoiser, flow, text
from tests.pipelines.decoders import compressing, kl, packed, shifted, small, wan
from tests.pipelines.encoders import language, mistral, qwen3_vl, qwen_vl, t5, t5_gemma
from tests.pipelines.words import VOCAB, tokenizer


def prx() -> Any:
    return assemble(
        "PRXPipeline",
        transformer=denoiser("prx"),
        scheduler=flow(shift=3.0),
        text_encoder=t5_gemma(),
        tokenizer=tokenizer(),
        vae=compressing(5, stages=4),
        default_sample_size=32,
    )


def prx_pixel() -> Any:
    return assemble(
        "PRXPixelPipeline",
        transformer=denoiser("prx_pixel"),
        scheduler=flow(shift=3.0),
        text_encoder=language("Qwen3Model", "Qwen3Config"),
        tokenizer=tokenizer(),
        default_sample_size=16,
        prompt_max_tokens=32,
    )


def nucleus() -> Any:
    return assemble(
        "NucleusMoEImagePipeline",
        transformer=denoiser("nucleusmoe"),
        scheduler=flow(shift=3.0),
        vae=wan(3, "AutoencoderKLQwenImage"),
        text_encoder=qwen3_vl(num_hidden_layers=8),
        processor=tokenizer(512, end=False),
    )


def krea2() -> Any:
    """Five layers of the text encoder go in."""
    pipeline = assemble(
        "Krea2Pipeline",
        scheduler=flow(use_dynamic_shifting=True),
        vae=wan(3, "AutoencoderKLQwenImage"),
        text_encoder=qwen3_vl("Qwen3VLModel", num_hidden_layers=5),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("krea2", in_channels=12, text_hidden_dim=20),
        text_encoder_select_layers=(1, 2, 3, 4, 5),
    )
    pipeline.prompt_template_encode_prefix, pipeline.prompt_template_encode_start_idx = "Describe: ", 10
    return pipeline


def ovis() -> Any:
    return assemble(
        "OvisImagePipeline",
        scheduler=flow(use_dynamic_shifting=True),
        vae=shifted(channels=2),
        text_encoder=language("Qwen3Model", "Qwen3Config"),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("ovis_image", in_channels=8, out_channels=8),
    )


def omnigen() -> Any:
    return assemble(
        "OmniGenPipeline",
        transformer=denoiser("omnigen", in_channels=4, vocab_size=VOCAB),
        scheduler=flow(invert_sigmas=True, num_train_timesteps=1),
        vae=kl(stages=4),
        tokenizer=tokenizer(512, begin=True, end=False),
    )


def dreamlite(cls: str) -> Any:
    words = tokenizer(512, end=False)
    return assemble(
        cls,
        text_encoder=qwen3_vl(),
        tokenizer=words,
        processor=words,
        vae=small(),
        unet=denoiser("dreamlite"),
        scheduler=flow(use_dynamic_shifting=True),
    )


def glm() -> Any:
    """The tokens that a language model of images would make first are inputs of the call."""
    return assemble(
        "GlmImagePipeline",
        tokenizer=tokenizer(512),
        processor=None,
        text_encoder=t5(),
        vision_language_encoder=None,
        vae=kl(channels=5, latents_mean=[0.1] * 5, latents_std=[0.8] * 5),
        transformer=denoiser("glm_image"),
        scheduler=flow(use_dynamic_shifting=True, time_shift_type="linear"),
    )


def longcat() -> Any:
    return assemble(
        "LongCatImagePipeline",
        scheduler=flow(use_dynamic_shifting=True),
        vae=shifted(channels=16),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(512, end=False),
        text_processor=None,
        transformer=denoiser("longcat_image", in_channels=64),
    )


def ernie() -> Any:
    return assemble(
        "ErnieImagePipeline",
        transformer=denoiser("ernie-image", in_channels=8, out_channels=8),
        vae=packed(2),
        text_encoder=mistral("Mistral3Model"),
        tokenizer=tokenizer(512, begin=True, end=False),
        scheduler=flow(shift=3.0),
    )


def ideogram() -> Any:
    """A network of its own for what is not guided, which sees the image alone."""
    return assemble(
        "Ideogram4Pipeline",
        scheduler=flow(),
        vae=packed(2),
        text_encoder=qwen3_vl("Qwen3VLModel", num_hidden_layers=36),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("ideogram4", in_channels=8, llm_features_dim=13 * 20),
        unconditional_transformer=denoiser("ideogram4", in_channels=8, llm_features_dim=13 * 20),
    )


SYMBOLS = torch.randint(30, (3, 1, 16), generator=torch.Generator().manual_seed(5))

PIPELINES = {
    "prx": text(prx, guidance_scale=4.0, height=32, width=32, use_resolution_binning=False),
    "prx-pixel": text(prx_pixel, guidance_scale=4.0, height=16, width=16, use_resolution_binning=False),
    "nucleus": text(nucleus, guidance_scale=4.0, height=32, width=48),
    "krea2": text(krea2, guidance_scale=4.0, height=32, width=32, max_sequence_length=64),
    "ovis": text(ovis, guidance_scale=4.0, height=16, width=24),
    "omnigen": text(omnigen, guidance_scale=2.5, height=64, width=64),
    "dreamlite": text(lambda: dreamlite("DreamLitePipeline"), height=32, width=32),
    "dreamlite-mobile": text(lambda: dreamlite("DreamLiteMobilePipeline"), height=32, width=32),
    "longcat-image": text(longcat, guidance_scale=4.5, height=16, width=24, enable_prompt_rewrite=False),
    "ernie-image": text(ernie, guidance_scale=4.0, height=16, width=24, use_pe=False),
    "ideogram4": text(
        ideogram, guidance_scale=4.0, guidance_schedule=None, height=16, width=24, max_sequence_length=64
    ),
    "glm-image": TinyPipeline(
        glm,
        [
            {"prompt": f"'{prompt}'", "prior_token_ids": ids}
            for prompt, ids in zip(PROMPTS, SYMBOLS, strict=True)
        ],
        {"num_inference_steps": 4, "guidance_scale": 1.5, "height": 16, "width": 16},
        "text",
    ),
}
