"""Stable Diffusion 3, and models of two streams like it."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.decoders import kl, shifted
from tests.pipelines.encoders import clip, language, t5
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 16, "width": 16}


def clips(first: int, second: int) -> dict[str, Any]:
    """Return two encoders of CLIP with projections of these widths, and T5."""
    return {
        "text_encoder": clip(8, projection=first),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(12, projection=second),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5(),
        "tokenizer_3": tokenizer(),
    }


def sd3(cls: str = "StableDiffusion3Pipeline", **more: Any) -> Any:
    return assemble(
        cls,
        transformer=denoiser("sd3_qk_norm"),
        scheduler=flow(shift=3.0),
        vae=shifted(),
        **clips(5, 7),
        **more,
    )


def hidream() -> Any:
    """The pipeline scales the size asked for to the area of its models, 1024 x 1024."""
    pipeline = assemble(
        "HiDreamImagePipeline",
        transformer=denoiser("hidream", in_channels=4),
        scheduler=flow(shift=3.0),
        vae=shifted(),
        **clips(8, 10),
        text_encoder_4=language(
            "LlamaForCausalLM", "LlamaConfig", hidden_size=14, head_dim=6, num_hidden_layers=6
        ),
        tokenizer_4=tokenizer(begin=True, end=False),
    )
    pipeline.default_sample_size = 8
    return pipeline


def auraflow() -> Any:
    return assemble(
        "AuraFlowPipeline",
        tokenizer=tokenizer(),
        text_encoder=t5(name="UMT5"),
        vae=kl(),
        transformer=denoiser("auraflow"),
        scheduler=flow(shift=1.73),
    )


PIPELINES = {
    "sd3": text(sd3, guidance_scale=5.0, max_sequence_length=24, **SIZE),
    "sd3-pag": text(
        lambda: sd3("StableDiffusion3PAGPipeline", pag_applied_layers=["blocks.1"]),
        guidance_scale=5.0,
        max_sequence_length=24,
        **SIZE,
    ),
    "hidream": text(hidream, guidance_scale=5.0, max_sequence_length=48, **SIZE),
    "auraflow": text(auraflow, guidance_scale=3.5, max_sequence_length=48, **SIZE),
}
