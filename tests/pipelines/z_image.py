"""Z-Image: prompts and latents in lists."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.decoders import shifted
from tests.pipelines.encoders import language
from tests.pipelines.words import tokenizer


def z_image(cls: str = "ZImagePipeline") -> Any:
    return assemble(
        cls,
        scheduler=flow(shift=3.0),
        vae=shifted(channels=5),
        text_encoder=language("Qwen3Model", "Qwen3Config"),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("z_image"),
    )


PIPELINES = {
    "z-image": text(z_image, guidance_scale=4.0, height=16, width=24, max_sequence_length=128),
    # Distilled: no guidance.
    "z-image-turbo": text(z_image, guidance_scale=0.0, height=16, width=24, max_sequence_length=128),
}
