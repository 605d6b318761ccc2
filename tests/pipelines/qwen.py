"""Qwen-Image."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.decoders import wan
from tests.pipelines.encoders import qwen_vl
from tests.pipelines.words import tokenizer


def qwen_image(cls: str = "QwenImagePipeline", latents: int = 3, **config: Any) -> Any:
    return assemble(
        cls,
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=wan(latents, "AutoencoderKLQwenImage"),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("qwen_image", **config),
    )


PIPELINES = {
    "qwen-image": text(qwen_image, true_cfg_scale=4.0, negative_prompt="blurry", height=32, width=48),
}
