"""Flux and its nearest relatives."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.decoders import shifted
from tests.pipelines.encoders import clip, t5
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


PIPELINES = {
    "flux": text(lambda: flux(True), max_sequence_length=24, **SIZE),
    "flux-schnell": text(lambda: flux(False), max_sequence_length=24, **SIZE),
    # Guidance by a second call.
    "flux-true-guidance": text(
        lambda: flux(True), max_sequence_length=24, true_cfg_scale=3.0, negative_prompt="blurry", **SIZE
    ),
}
