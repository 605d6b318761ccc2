"""Pipelines that start from an image, change it, or are guided by one: relatives of those that start from noise."""

from __future__ import annotations

from typing import Any

import diffusers

from tests.pipelines import stable_diffusion as sd
from tests.pipelines.base import assemble, denoiser, flow, image, masked, scheduler
from tests.pipelines.decoders import kl, shifted, wan
from tests.pipelines.encoders import clip, language, qwen_vl, t5
from tests.pipelines.flux import flux
from tests.pipelines.wan import parts
from tests.pipelines.words import clip_tokenizer, tokenizer

GUIDED = {"guidance_scale": 5.0}


def stable_diffusion(name: str, **config: Any) -> Any:
    return sd.sd(f"StableDiffusion{name}Pipeline", unet=denoiser("sd15", **config))


def sdxl() -> Any:
    return assemble(
        "StableDiffusionXLImg2ImgPipeline",
        vae=kl(),
        text_encoder=clip(8),
        text_encoder_2=clip(12, projection=10),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=denoiser("sdxl"),
        scheduler=scheduler("EulerDiscreteScheduler", **sd.NOISE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def control() -> Any:
    """A second network looks at the latents and at a picture of edges, and adds to what goes on in the UNet."""
    unet = denoiser("sd15")
    eye = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))
    return sd.sd("StableDiffusionControlNetPipeline", unet=unet, controlnet=eye)


def upscale() -> Any:
    """The small image is noised, and the network told how much."""
    return assemble(
        "StableDiffusionUpscalePipeline",
        vae=kl(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
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


def qwen() -> Any:
    """Images of as many channels as the latents have are taken for latents: four, not three."""
    return assemble(
        "QwenImageImg2ImgPipeline",
        scheduler=flow(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=wan(4, "AutoencoderKLQwenImage"),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("qwen_image", in_channels=16, out_channels=4),
    )


def z_image() -> Any:
    return assemble(
        "ZImageImg2ImgPipeline",
        scheduler=flow(shift=3.0),
        vae=shifted(channels=5),
        text_encoder=language("Qwen3Model", "Qwen3Config"),
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser("z_image"),
    )


def chroma() -> Any:
    return assemble(
        "ChromaImg2ImgPipeline",
        scheduler=flow(),
        vae=shifted(channels=2),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=denoiser("chroma", in_channels=8),
    )


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
    "sdxl-image": image(sdxl, (16, 16), sized=False, strength=0.8, **GUIDED),
    "flux-image": image(
        lambda: flux(cls="FluxImg2ImgPipeline"), (16, 24), strength=0.8, max_sequence_length=24
    ),
    "flux-inpaint": masked(
        image(lambda: flux(cls="FluxInpaintPipeline"), (16, 24), strength=0.8, max_sequence_length=24)
    ),
    "flux-controlnet": image(flux_control, (16, 24), "control_image", max_sequence_length=24),
    "chroma-image": image(chroma, (16, 24), strength=0.8, guidance_scale=4.0, max_sequence_length=24),
    "qwen-image-image": image(qwen, (32, 48), strength=0.8, true_cfg_scale=4.0, negative_prompt="blurry"),
    "z-image-image": image(z_image, (16, 32), strength=0.8, guidance_scale=4.0, max_sequence_length=128),
    "wan-video": image(
        wan_video, (32, 48), "video", film=5, strength=0.8, guidance_scale=4.0, max_sequence_length=24
    ),
}
