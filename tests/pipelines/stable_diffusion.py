"""Stable Diffusion 1, 2, XL and what shares their UNet."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

from tests.pipelines.base import assemble, denoiser, image, scheduler, text
from tests.pipelines.decoders import kl
from tests.pipelines.encoders import bert, chatglm, clip, clip_processor, clip_vision, t5
from tests.pipelines.words import PlacedTokenizer, clip_tokenizer, tokenizer

CALL = {"guidance_scale": 5.0, "height": 16, "width": 16}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def one_clip() -> dict[str, Any]:
    """Return autoencoder, text encoder and tokenizer of Stable Diffusion."""
    return {"vae": kl(), "text_encoder": clip(), "tokenizer": clip_tokenizer()}


def sd(cls: str = "StableDiffusionPipeline", sampler: Any = None, **more: Any) -> Any:
    return assemble(
        cls,
        **one_clip(),
        scheduler=sampler or scheduler("DDIMScheduler", **NOISE, clip_sample=False, set_alpha_to_one=False),
        **UNCHECKED,
        **more,
    )


def sd15(**sampler: Any) -> Any:
    return sd(unet=denoiser("sd15"), **sampler)


def two_clips() -> dict[str, Any]:
    """Return autoencoder, text encoders and tokenizers of Stable Diffusion XL."""
    return {
        "vae": kl(),
        "text_encoder": clip(8),
        "text_encoder_2": clip(12, projection=10),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
    }


def euler() -> Any:
    return scheduler("EulerDiscreteScheduler", **NOISE, timestep_spacing="leading", steps_offset=1)


def sdxl(cls: str = "StableDiffusionXLPipeline") -> Any:
    return assemble(cls, **two_clips(), unet=denoiser("sdxl"), scheduler=euler(), add_watermarker=False)


def pag() -> Any:
    """Attention is perturbed in the middle: its processors are swapped during the call."""
    return sd("StableDiffusionPAGPipeline", unet=denoiser("sd15"), pag_applied_layers=["mid"])


def latent_consistency() -> Any:
    return sd(
        "LatentConsistencyModelPipeline",
        scheduler("LCMScheduler", **NOISE),
        unet=denoiser("lcm-inpaint", in_channels=4),
    )


def latent_diffusion() -> Any:
    return assemble(
        "LDMTextToImagePipeline",
        vqvae=kl(),
        bert=bert(),
        tokenizer=tokenizer(begin=True),
        unet=denoiser("sd15"),
        scheduler=scheduler("DDIMScheduler", **NOISE),
    )


def deepfloyd() -> Any:
    return assemble(
        "IFPipeline",
        tokenizer=tokenizer(),
        text_encoder=t5(28),
        unet=denoiser("deepfloyd", in_channels=3, out_channels=6, class_embed_type=None),
        scheduler=scheduler("DDPMScheduler", variance_type="learned_range", thresholding=True),
        watermarker=None,
        **UNCHECKED,
    )


def kolors() -> Any:
    """Imported by its path: diffusers hides it where its tokenizer's library, sentencepiece, is not installed."""
    return assemble(
        KolorsPipeline,
        vae=kl(),
        text_encoder=chatglm(28),
        tokenizer=tokenizer(64, begin=True, end=False, cls=PlacedTokenizer, padding_side="left"),
        unet=denoiser("kolors", projection_class_embeddings_input_dim=6 * 8 + 28),
        scheduler=euler(),
    )


def variation() -> Any:
    return assemble(
        "StableDiffusionImageVariationPipeline",
        vae=kl(),
        image_encoder=clip_vision(projection=20),
        unet=denoiser("sd15"),
        scheduler=scheduler("PNDMScheduler", **NOISE, skip_prk_steps=True, steps_offset=1),
        **{**UNCHECKED, "feature_extractor": clip_processor()},
    )


def animatediff(cls: str, model: str, parts: dict[str, Any]) -> Any:
    return assemble(
        cls,
        **parts,
        unet=denoiser(model),
        motion_adapter=None,
        scheduler=scheduler("DDIMScheduler", **NOISE, clip_sample=False, timestep_spacing="linspace"),
    )


PIPELINES = {
    "sd": text(sd15, **CALL),
    # What its models come with: the first step is asked twice.
    "sd-pndm": text(
        lambda: sd15(sampler=scheduler("PNDMScheduler", **NOISE, skip_prk_steps=True, steps_offset=1)), **CALL
    ),
    "sd-dpm": text(lambda: sd15(sampler=scheduler("DPMSolverMultistepScheduler", **NOISE)), **CALL),
    "sd-pag": text(pag, **CALL),
    "sd-variation": image(variation, (16, 16), prompt=False, guidance_scale=5.0),
    "animatediff": text(
        lambda: animatediff("AnimateDiffPipeline", "animatediff", one_clip()), num_frames=3, **CALL
    ),
    "animatediff-sdxl": text(
        lambda: animatediff("AnimateDiffSDXLPipeline", "animatediff-sdxl", two_clips()), num_frames=3, **CALL
    ),
    "sdxl": text(sdxl, negative_prompt="blurry", **CALL),
    "kolors": text(kolors, max_sequence_length=32, **CALL),
    "lcm": text(latent_consistency, **CALL),
    "ldm": text(latent_diffusion, **CALL),
    "deepfloyd": text(deepfloyd, clean_caption=False, **CALL),
}
