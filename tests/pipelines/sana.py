"""SANA and SANA-Sprint."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, flow, scheduler, text
from tests.pipelines.decoders import compressing
from tests.pipelines.encoders import language
from tests.pipelines.words import tokenizer

CALL = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 32}


def sana(cls: str, model: str, sampler: Any) -> Any:
    return assemble(
        cls,
        tokenizer=tokenizer(300, begin=True, end=False),
        text_encoder=language("Gemma2Model", "Gemma2Config"),
        vae=compressing(6, stages=4),
        transformer=denoiser(model),
        scheduler=sampler,
    )


PIPELINES = {
    "sana": text(
        lambda: sana("SanaPipeline", "sana", flow(shift=3.0)),
        guidance_scale=4.5,
        complex_human_instruction=["Be precise.", "User prompt: "],
        **CALL,
    ),
    # The scheduler that its models come with.
    "sana-dpm": text(
        lambda: sana(
            "SanaPipeline",
            "sana",
            scheduler(
                "DPMSolverMultistepScheduler",
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=3.0,
            ),
        ),
        guidance_scale=4.5,
        complex_human_instruction=None,
        **CALL,
    ),
    "sana-sprint": text(
        lambda: sana("SanaSprintPipeline", "sana-sprint", scheduler("SCMScheduler")),
        guidance_scale=4.5,
        intermediate_timesteps=None,
        complex_human_instruction=None,
        **CALL,
    ),
}
