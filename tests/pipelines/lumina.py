"""Lumina-Next and Lumina-Image 2."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.decoders import kl, shifted
from tests.pipelines.encoders import language
from tests.pipelines.words import tokenizer

CALL = {"guidance_scale": 4.0, "height": 16, "width": 32, "max_sequence_length": 256}


def lumina() -> Any:
    return assemble(
        "LuminaPipeline",
        transformer=denoiser("lumina-next"),
        scheduler=flow(),
        vae=kl(),
        text_encoder=language("GemmaModel", "GemmaConfig"),
        tokenizer=tokenizer(256, begin=True, end=False),
    )


def lumina2() -> Any:
    return assemble(
        "Lumina2Pipeline",
        transformer=denoiser("lumina2", axes_lens=(320, 16, 16)),
        scheduler=flow(use_dynamic_shifting=True),
        vae=shifted(channels=5),
        text_encoder=language("Gemma2Model", "Gemma2Config"),
        tokenizer=tokenizer(256, begin=True, end=False),
    )


PIPELINES = {
    "lumina": text(lumina, clean_caption=False, **CALL),
    "lumina2": text(lumina2, **CALL),
}
