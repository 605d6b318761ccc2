"""Wan 2.1 and 2.2: one denoiser, or one for much noise and one for little."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import assemble, denoiser, scheduler, text
from tests.pipelines.decoders import wan as autoencoder
from tests.pipelines.encoders import t5
from tests.pipelines.words import tokenizer

SIZE = {"height": 32, "width": 48, "num_frames": 5}
CALL = {**SIZE, "guidance_scale": 4.0, "max_sequence_length": 24}


def unipc() -> Any:
    return scheduler(
        "UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def parts() -> dict[str, Any]:
    return {
        "scheduler": unipc(),
        "vae": autoencoder(5),
        "text_encoder": t5(name="UMT5"),
        "tokenizer": tokenizer(),
    }


def wan(experts: int) -> Any:
    second = {"transformer_2": denoiser("wan"), "boundary_ratio": 0.875} if experts == 2 else {}
    return assemble("WanPipeline", **parts(), transformer=denoiser("wan"), **second)


PIPELINES = {
    "wan": text(lambda: wan(1), **CALL),
    "wan-two-experts": text(lambda: wan(2), guidance_scale_2=3.0, **CALL),
    # Wan 2.2 of 5 billion: a time for each token.
    "wan-token-times": text(
        lambda: assemble("WanPipeline", **parts(), transformer=denoiser("wan"), expand_timesteps=True), **CALL
    ),
}
