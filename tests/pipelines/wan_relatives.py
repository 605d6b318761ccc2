"""Built on Wan: SkyReels V2, AnyFlow, Helios."""

from __future__ import annotations

from typing import Any

from tests.pipelines.base import PROMPTS, TinyPipeline, assemble, denoiser, image, scheduler, text
from tests.pipelines.encoders import clip_processor, clip_vision
from tests.pipelines.wan import CALL, parts


def skyreels(cls: str, **config: Any) -> Any:
    return assemble(cls, **parts(), transformer=denoiser("skyreels_v2", **config))


def skyreels_image() -> Any:
    return assemble(
        "SkyReelsV2ImageToVideoPipeline",
        **parts(),
        transformer=denoiser("skyreels_v2_i2v", in_channels=14),
        image_encoder=clip_vision(14, projection=14),
        image_processor=clip_processor(),
    )


def anyflow(cls: str, model: str, **config: Any) -> Any:
    components = parts() | {"scheduler": scheduler("FlowMapEulerDiscreteScheduler", shift=5.0)}
    return assemble(cls, **components, transformer=denoiser(model, in_channels=5, out_channels=5, **config))


def helios() -> Any:
    components = parts() | {"scheduler": scheduler("HeliosScheduler", stages=1, stage_range=[0, 1])}
    return assemble("HeliosPipeline", **components, transformer=denoiser("helios"))


def pyramid() -> Any:
    """Stages of growing resolution, each with steps of its own."""
    # With its default 1/3 a covariance is singular, and it depends on the processor's rounding whether it has a factor.
    components = parts() | {"scheduler": scheduler("HeliosScheduler", gamma=0.3)}
    return assemble("HeliosPyramidPipeline", **components, transformer=denoiser("helios"))


def chronoedit() -> Any:
    return assemble(
        "ChronoEditPipeline",
        **parts(),
        transformer=denoiser("chronoedit-image", in_channels=14, out_channels=5),
        image_encoder=clip_vision(14),
        image_processor=clip_processor(),
    )


def lucy() -> Any:
    """The film's latents go in beside the noise."""
    return assemble("LucyEditPipeline", **parts(), transformer=denoiser("wan", in_channels=10))


PIPELINES = {
    "helios-pyramid": TinyPipeline(
        pyramid,
        [{"prompt": prompt} for prompt in PROMPTS],
        {
            **{**CALL, "num_frames": 9, "height": 128, "width": 128},
            "num_latent_frames_per_chunk": 3,
            "history_sizes": [4, 2, 1],
            "pyramid_num_inference_steps_list": [2, 2, 2],
        },
        "text",
    ),
    "chronoedit": image(chronoedit, (32, 48), num_frames=5, guidance_scale=4.0, max_sequence_length=512),
    "lucy": image(lucy, (32, 48), "video", film=5, num_frames=5, guidance_scale=4.0, max_sequence_length=24),
    "skyreels-v2": text(lambda: skyreels("SkyReelsV2Pipeline"), **CALL),
    "skyreels-v2-forcing": text(
        lambda: skyreels("SkyReelsV2DiffusionForcingPipeline"),
        **{**CALL, "num_frames": 9},
        base_num_frames=9,
        ar_step=1,
        causal_block_size=1,
    ),
    "anyflow": text(lambda: anyflow("AnyFlowPipeline", "anyflow"), **CALL),
    "anyflow-far": text(
        lambda: anyflow("AnyFlowFARPipeline", "anyflow-far"), **{**CALL, "num_frames": 13, "width": 32}
    ),
    "helios": text(
        helios,
        **{**CALL, "num_frames": 9, "height": 64, "width": 64},
        num_latent_frames_per_chunk=3,
        history_sizes=[4, 2, 1],
    ),
    "skyreels-v2-image": image(
        skyreels_image, (32, 48), num_frames=5, guidance_scale=4.0, max_sequence_length=512
    ),
    "skyreels-v2-forcing-image": image(
        lambda: skyreels("SkyReelsV2DiffusionForcingImageToVideoPipeline"),
        (32, 48),
        num_frames=9,
        base_num_frames=9,
        guidance_scale=4.0,
        max_sequence_length=24,
    ),
}
