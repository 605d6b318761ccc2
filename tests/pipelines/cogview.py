"""CogView3-Plus and CogView4."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, scheduler, text
from tests.pipelines.decoders import kl
from tests.pipelines.encoders import language, t5
from tests.pipelines.words import tokenizer

CALL = {"guidance_scale": 5.0, "height": 16, "width": 16}


def cogview3() -> Any:
    return assemble(
        "CogView3PlusPipeline",
        tokenizer=tokenizer(),
        text_encoder=t5(),
        vae=kl(),
        transformer=denoiser("cogview3"),
        scheduler=scheduler(
            "CogVideoXDDIMScheduler",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            prediction_type="v_prediction",
        ),
    )


def cogview4() -> Any:
    return assemble(
        "CogView4Pipeline",
        tokenizer=tokenizer(begin=True, end=False, padding_side="left"),
        text_encoder=language("GlmModel", "GlmConfig", partial_rotary_factor=0.4),
        vae=kl(),
        transformer=denoiser("cogview4"),
        scheduler=flow(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"),
    )


PIPELINES = {
    "cogview3-plus": text(cogview3, max_sequence_length=32, **CALL),
    "cogview4": text(cogview4, max_sequence_length=64, **CALL),
}
