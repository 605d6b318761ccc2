"""PixArt-alpha and -Sigma."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, scheduler, text
from tests.pipelines.decoders import kl
from tests.pipelines.encoders import t5
from tests.pipelines.words import tokenizer

CALL = {
    "guidance_scale": 4.5,
    "height": 16,
    "width": 24,
    "use_resolution_binning": False,
    "max_sequence_length": 24,
    "clean_caption": False,
}


def pixart(cls: str, model: str, **config: Any) -> Any:
    return assemble(
        cls,
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=kl(),
        transformer=denoiser(model, **config),
        scheduler=scheduler("DPMSolverMultistepScheduler"),
    )


PIPELINES = {
    "pixart-sigma": text(lambda: pixart("PixArtSigmaPipeline", "pixart"), **CALL),
    # Version 1024 is told the sizes; the class does so from 128 latents a side on.
    "pixart-alpha": text(lambda: pixart("PixArtAlphaPipeline", "pixart"), **CALL),
}
