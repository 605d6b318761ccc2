"""Pipelines that start from an image, change it, or are guided by one: relatives of those that start from noise."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.pipelines import stable_diffusion as sd
from tests.pipelines.base import assemble, denoiser, image, masked, scheduler
from tests.pipelines.flux import chroma, flux
from tests.pipelines.qwen import qwen_image
from tests.pipelines.wan import parts
from tests.pipelines.z_image import z_image

GUIDED = {"guidance_scale": 5.0}


def stable_diffusion(name: str, **config: Any) -> Any:
    return sd.sd(f"StableDiffusion{name}Pipeline", unet=denoiser("sd15", **config))


def control() -> Any:
    """A second network looks at the latents and at a picture of edges, and adds to what goes on in the UNet."""
    unet = denoiser("sd15")
    eye = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    return sd.sd("StableDiffusionControlNetPipeline", unet=unet, controlnet=eye)


def upscale() -> Any:
    """The small image is noised, and the network told how much."""
    return assemble(
        "StableDiffusionUpscalePipeline",
        **sd.one_clip(),
        unet=denoiser("sd-upscaler", num_class_embeds=400),
        low_res_scheduler=scheduler("DDPMScheduler"),
        scheduler=scheduler("DDIMScheduler", **sd.NOISE),
    )


def flux_control() -> Any:
    eye = diffusers.FluxControlNetModel.from_transformer(
        denoiser("flux-guidance", in_channels=8, pooled_projection_dim=20),
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
    )
    return flux(cls="FluxControlNetPipeline", controlnet=eye)


def wan_video() -> Any:
    return assemble("WanVideoToVideoPipeline", **parts(), transformer=denoiser("wan"))


PIPELINES = {
    "sd-image": image(lambda: stable_diffusion("Img2Img"), (16, 16), sized=False, strength=0.8, **GUIDED),
    "sd-inpaint": masked(image(lambda: stable_diffusion("Inpaint", in_channels=9), (16, 16), **GUIDED)),
    "sd-inpaint-blended": masked(
        image(lambda: stable_diffusion("Inpaint"), (16, 16), strength=0.8, **GUIDED)
    ),
    "sd-instruct": image(
        lambda: stable_diffusion("InstructPix2Pix", in_channels=8), (16, 16), sized=False, **GUIDED
    ),
    "sd-control": image(control, (16, 16), **GUIDED),
    "sd-upscale": image(upscale, (16, 16), sized=False, **GUIDED),
    "sdxl-image": image(
        lambda: sd.sdxl("StableDiffusionXLImg2ImgPipeline"), (16, 16), sized=False, strength=0.8, **GUIDED
    ),
    "flux-image": image(
        lambda: flux(cls="FluxImg2ImgPipeline"), (16, 24), strength=0.8, max_sequence_length=24
    ),
    "flux-inpaint": masked(
        image(lambda: flux(cls="FluxInpaintPipeline"), (16, 24), strength=0.8, max_sequence_length=24)
    ),
    "flux-controlnet": image(flux_control, (16, 24), "control_image", max_sequence_length=24),
    "chroma-image": image(
        lambda: chroma("ChromaImg2ImgPipeline"),
        (16, 24),
        strength=0.8,
        guidance_scale=4.0,
        max_sequence_length=24,
    ),
    # Images of as many channels as the latents have are taken for latents: four, not three.
    "qwen-image-image": image(
        lambda: qwen_image("QwenImageImg2ImgPipeline", 4, in_channels=16, out_channels=4),
        (32, 48),
        strength=0.8,
        true_cfg_scale=4.0,
        negative_prompt="blurry",
    ),
    "z-image-image": image(
        lambda: z_image("ZImageImg2ImgPipeline"),
        (16, 32),
        strength=0.8,
        guidance_scale=4.0,
        max_sequence_length=128,
    ),
    "wan-video": image(
        wan_video, (32, 48), "video", film=5, strength=0.8, guidance_scale=4.0, max_sequence_length=24
    ),
}
