"""Stable Diffusion 1, 2, XL and what shares their UNet."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, scheduler, text
from tests.pipelines.decoders import kl
from tests.pipelines.encoders import clip
from tests.pipelines.words import clip_tokenizer

CALL = {"guidance_scale": 5.0, "height": 16, "width": 16}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sdxl() -> Any:
    return assemble(
        "StableDiffusionXLPipeline",
        vae=kl(),
        text_encoder=clip(8),
        text_encoder_2=clip(12, projection=10),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=denoiser("sdxl"),
        scheduler=scheduler("EulerDiscreteScheduler", **NOISE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


PIPELINES = {
    "sdxl": text(sdxl, negative_prompt="blurry", **CALL),
}
