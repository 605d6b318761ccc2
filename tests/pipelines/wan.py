"""Wan 2.1 and 2.2: one denoiser, or one for much noise and one for little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.pipelines.base import TinyPipeline, assemble, denoiser, image, pictures, scheduler, text
from tests.pipelines.decoders import wan as autoencoder
from tests.pipelines.encoders import clip_processor, clip_vision, t5
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


def from_image(experts: int) -> Any:
    """Latents, a mask of four channels and the latents of the image; Wan 2.1 has its embedding as well."""
    if experts == 2:
        second = {"transformer_2": denoiser("wan22_i2v", in_channels=14), "boundary_ratio": 0.9}
        return assemble(
            "WanImageToVideoPipeline", **parts(), transformer=denoiser("wan22_i2v", in_channels=14), **second
        )
    return assemble(
        "WanImageToVideoPipeline",
        **parts(),
        transformer=denoiser("wan_i2v", in_channels=14),
        image_encoder=clip_vision(14),
        image_processor=clip_processor(),
    )


def vace() -> Any:
    """Latents of what is kept and of what is made, and a mask in blocks of 8 x 8."""
    return assemble("WanVACEPipeline", **parts(), transformer=denoiser("wan_vace", vace_in_channels=74))


def animate() -> TinyPipeline:
    """A picture of a person, and a film of poses and one of faces that it follows."""
    entry = image(
        lambda: assemble(
            "WanAnimatePipeline",
            **parts(),
            transformer=denoiser("wan_animate"),
            image_encoder=clip_vision(14),
            image_processor=clip_processor(),
        ),
        (32, 48),
        segment_frame_length=5,
        max_sequence_length=512,
    )
    films = zip(entry.inputs, pictures(5, 32, 48), pictures(5, 16, 16)[::-1], strict=True)
    return replace(
        entry, inputs=[{**one, "pose_video": poses, "face_video": faces} for one, poses, faces in films]
    )


PIPELINES = {
    "wan": text(lambda: wan(1), **CALL),
    "wan-two-experts": text(lambda: wan(2), guidance_scale_2=3.0, **CALL),
    "wan-image": image(
        lambda: from_image(1), (32, 48), num_frames=5, guidance_scale=4.0, max_sequence_length=512
    ),
    "wan-image-two-experts": image(
        lambda: from_image(2), (32, 48), num_frames=5, guidance_scale=4.0, max_sequence_length=24
    ),
    "wan-vace": image(
        vace, (32, 48), "video", film=5, num_frames=5, guidance_scale=4.0, max_sequence_length=24
    ),
    "wan-animate": animate(),
    # Wan 2.2 of 5 billion: a time for each token.
    "wan-token-times": text(
        lambda: assemble("WanPipeline", **parts(), transformer=denoiser("wan"), expand_timesteps=True), **CALL
    ),
}
