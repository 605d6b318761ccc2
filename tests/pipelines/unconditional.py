"""Pipelines that are told nothing, or a class only."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import TinyPipeline, assemble, denoiser, scheduler
from tests.pipelines.decoders import kl

LABELS = ({"class_labels": [3]}, {"class_labels": [0]}, {"class_labels": [1]})


def pixels(cls: str, sampler: str, model: str = "unet2d", **config: Any) -> Any:
    return assemble(cls, unet=denoiser(model), scheduler=scheduler(sampler, **config))


def dit() -> Any:
    return assemble(
        "DiTPipeline",
        transformer=denoiser("dit"),
        vae=kl(),
        scheduler=scheduler("DDIMScheduler"),
        id2label={str(k): f"thing {k}" for k in range(4)},
    )


def unconditional(build: Any, **call: Any) -> TinyPipeline:
    return TinyPipeline(build, [{}] * 3, {"num_inference_steps": 4, **call}, "unconditional")


PIPELINES = {
    "dit": TinyPipeline(dit, LABELS, {"num_inference_steps": 4, "guidance_scale": 4.0}, "class"),
    "ddim": unconditional(lambda: pixels("DDIMPipeline", "DDIMScheduler")),
    "ddpm": unconditional(lambda: pixels("DDPMPipeline", "DDPMScheduler")),
    "consistency": unconditional(
        lambda: pixels("ConsistencyModelPipeline", "CMStochasticIterativeScheduler", num_train_timesteps=20)
    ),
    "consistency-classes": TinyPipeline(
        lambda: pixels(
            "ConsistencyModelPipeline",
            "CMStochasticIterativeScheduler",
            "unet2d-consistency",
            num_train_timesteps=20,
        ),
        [{"class_labels": 3}, {"class_labels": 0}, {"class_labels": 1}],
        {"num_inference_steps": 4},
        "class",
    ),
}
