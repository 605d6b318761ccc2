"""Cosmos: worlds from text."""

from __future__ import annotations

from typing import Any

from tests.pipelines import videos
from tests.pipelines.base import assemble, denoiser, flow, scheduler, text
from tests.pipelines.decoders import wan
from tests.pipelines.encoders import qwen_vl, t5
from tests.pipelines.words import VOCAB, tokenizer

CALL = {"guidance_scale": 5.0, "height": 64, "width": 48}


class AllowAll:
    """Stands for the guard rails, whose library need not be here."""

    def to(self, *_: Any) -> AllowAll:
        return self

    def check_text_safety(self, _: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def world(cls: str, vae: Any, sampler: Any, **more: Any) -> Any:
    components = {
        "text_encoder": t5(),
        "tokenizer": tokenizer(),
        "transformer": denoiser("cosmos"),
        "vae": vae,
        "scheduler": sampler,
        "safety_checker": AllowAll(),
    }
    return assemble(cls, **{**components, **more})


def karras() -> Any:
    return flow(use_karras_sigmas=True)


def predict25() -> Any:
    """The text is what all layers of a language model say, one after another, and is projected first."""
    return world(
        "Cosmos2_5_PredictBasePipeline",
        wan(4),
        scheduler(
            "UniPCMultistepScheduler",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_karras_sigmas=True,
            sigma_max=200.0,
            sigma_min=0.01,
        ),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser(
            "cosmos2-video",
            use_crossattn_projection=True,
            crossattn_proj_in_channels=40,
            encoder_hidden_states_channels=20,
        ),
    )


def omni() -> Any:
    """Text and video in one sequence, one sample a call; the text has no encoder of its own."""
    return assemble(
        "Cosmos3OmniPipeline",
        transformer=denoiser("cosmos3", vocab_size=VOCAB),
        text_tokenizer=tokenizer(512, end=False),
        vae=wan(4),
        scheduler=scheduler(
            "UniPCMultistepScheduler",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_karras_sigmas=True,
            sigma_max=200.0,
            sigma_min=0.01,
        ),
        enable_safety_checker=False,
    )


PIPELINES = {
    "cosmos3": text(omni, num_frames=5, **CALL),
    "cosmos": text(
        lambda: world(
            "CosmosTextToWorldPipeline",
            videos.cosmos(),
            scheduler("EDMEulerScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5),
        ),
        num_frames=9,
        max_sequence_length=24,
        **CALL,
    ),
    "cosmos2-image": text(
        lambda: world("Cosmos2TextToImagePipeline", wan(4), karras()), max_sequence_length=24, **CALL
    ),
    "cosmos25": text(predict25, num_frames=5, max_sequence_length=200, **CALL),
}
