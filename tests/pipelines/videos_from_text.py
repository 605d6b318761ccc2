"""Videos from text or an image, of makes that have no file of their own."""

from __future__ import annotations

from typing import Any

from diffusers.guiders import AdaptiveProjectedGuidance

from tests.pipelines import videos
from tests.pipelines.base import assemble, denoiser, flow, image, scheduler, text
from tests.pipelines.decoders import kl, shifted, wan
from tests.pipelines.encoders import (
    bert,
    clip,
    clip_processor,
    clip_vision,
    language,
    qwen_vl,
    qwen_vl_processor,
    siglip,
    siglip_processor,
    t5,
)
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 48, "width": 64}
SANA = {
    "guidance_scale": 6.0,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "max_sequence_length": 24,
}


def from_t5(cls: str, vae: Any, transformer: Any, sampler: Any, **more: Any) -> Any:
    parts = {"tokenizer": tokenizer(), "text_encoder": t5(), "vae": vae, "transformer": transformer}
    return assemble(cls, **{**parts, "scheduler": sampler, **more})


def noise() -> Any:
    return scheduler("DDIMScheduler", beta_start=0.0001, beta_end=0.02)


def latte() -> Any:
    return from_t5("LattePipeline", kl(), denoiser("latte"), noise())


def allegro() -> Any:
    """It decodes only in tiles; here there is one."""
    pipeline = from_t5("AllegroPipeline", videos.allegro(), denoiser("allegro"), noise())
    pipeline.vae.enable_tiling()
    pipeline.vae.kernel = pipeline.vae.stride = (8, 48, 64)
    return pipeline


def cogvideo(cls: str = "CogVideoXPipeline", model: str = "cogvideox") -> Any:
    return from_t5(
        cls,
        videos.cogvideo(),
        denoiser(model, max_text_seq_length=24),
        scheduler("CogVideoXDDIMScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def cogvideo_dpm() -> Any:
    """CogVideoX-5b: rotary positions, and a sampler that keeps its last prediction."""
    return from_t5(
        "CogVideoXPipeline",
        videos.cogvideo(),
        denoiser("cogvideox", max_text_seq_length=24, use_rotary_positional_embeddings=True),
        scheduler("CogVideoXDPMScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )


def mochi() -> Any:
    return from_t5(
        "MochiPipeline",
        videos.mochi(12),
        denoiser("mochi", in_channels=12, max_sequence_length=24),
        flow(invert_sigmas=True),
        text_encoder=t5(24),
    )


def ltx(cls: str = "LTXPipeline", sampler: Any = None) -> Any:
    return from_t5(cls, videos.ltx(10), denoiser("ltx"), sampler or flow(use_dynamic_shifting=True))


def sana_video(cls: str, model: str, sampler: Any) -> Any:
    return assemble(
        cls,
        tokenizer=tokenizer(300, begin=True, end=False),
        text_encoder=language("Gemma2Model", "Gemma2Config"),
        vae=wan(5),
        transformer=denoiser(model),
        scheduler=sampler,
    )


def solver() -> Any:
    return scheduler(
        "DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )


def easyanimate() -> Any:
    return assemble(
        "EasyAnimatePipeline",
        vae=videos.magvit(),
        text_encoder=bert(),
        tokenizer=tokenizer(256, begin=True),
        transformer=denoiser("easyanimate"),
        scheduler=flow(),
    )


def motif(cls: str, model: str, text_encoder: Any, **more: Any) -> Any:
    return assemble(
        cls,
        scheduler=flow(shift=3.0),
        vae=wan(5),
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        transformer=denoiser(model),
        guider=AdaptiveProjectedGuidance(guidance_scale=5.0),
        **more,
    )


def motif_image() -> Any:
    """The text encoder's eye sees the image."""
    text_encoder = t5(name="UMT5")
    text_encoder.vision_tower = siglip(14)
    return motif(
        "MotifVideoImage2VideoPipeline", "motif_video_i2v", text_encoder, feature_extractor=siglip_processor()
    )


def svd() -> Any:
    return assemble(
        "StableVideoDiffusionPipeline",
        vae=videos.temporal(),
        image_encoder=clip_vision(projection=20, image_size=224, patch_size=56),
        unet=denoiser("svd"),
        scheduler=scheduler(
            "EulerDiscreteScheduler",
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            timestep_type="continuous",
            sigma_min=0.002,
            sigma_max=700.0,
        ),
        feature_extractor=clip_processor(),
    )


def kandinsky5(cls: str, vae: Any, model: str = "kandinsky5", words: Any = None) -> Any:
    return assemble(
        cls,
        transformer=denoiser(model),
        vae=vae,
        text_encoder=qwen_vl(),
        tokenizer=words or tokenizer(1200, end=False),
        text_encoder_2=clip(14),
        tokenizer_2=clip_tokenizer(),
        scheduler=flow(shift=5.0),
    )


def kandinsky5_image() -> Any:
    """The pipeline takes the sizes of its models only, unless told others."""
    pipeline = kandinsky5("Kandinsky5T2IPipeline", shifted(channels=5, stages=4))
    pipeline.resolutions = [(48, 32)]
    return pipeline


def kandinsky5_edit() -> Any:
    """The text encoder sees the image."""
    pipeline = kandinsky5(
        "Kandinsky5I2IPipeline", shifted(channels=5, stages=4), "kandinsky5_i2v", qwen_vl_processor()
    )
    pipeline.resolutions = [(96, 64)]
    return pipeline


PIPELINES = {
    "latte": text(
        latte, guidance_scale=7.5, video_length=3, height=16, width=16, clean_caption=False, mask_feature=True
    ),
    "allegro": text(
        allegro, guidance_scale=7.5, num_frames=8, clean_caption=False, max_sequence_length=24, **SIZE
    ),
    "cogvideox": text(cogvideo, guidance_scale=6.0, num_frames=5, max_sequence_length=24, **SIZE),
    "cogvideox-dpm": text(
        cogvideo_dpm,
        guidance_scale=6.0,
        use_dynamic_cfg=True,
        num_frames=5,
        max_sequence_length=24,
        **SIZE,
    ),
    "mochi": text(mochi, guidance_scale=4.5, num_frames=7, height=16, width=32, max_sequence_length=24),
    "ltx": text(ltx, guidance_scale=3.0, num_frames=9, height=64, width=96, max_sequence_length=24),
    "sana-video": text(
        lambda: sana_video("SanaVideoPipeline", "sana_video", solver()), frames=5, height=32, width=64, **SANA
    ),
    "easyanimate": text(
        easyanimate, guidance_scale=5.0, negative_prompt="blurry", num_frames=5, height=32, width=48
    ),
    "motif-video": text(
        lambda: motif("MotifVideoPipeline", "motif_video", t5(name="UMT5")),
        negative_prompt="blurry",
        num_frames=5,
        height=32,
        width=48,
        max_sequence_length=24,
    ),
    "kandinsky5-image": text(
        kandinsky5_image,
        guidance_scale=3.5,
        height=32,
        width=48,
    ),
    "kandinsky5-video": text(
        lambda: kandinsky5("Kandinsky5T2VPipeline", videos.hunyuan(5)),
        guidance_scale=5.0,
        height=32,
        width=48,
        num_frames=5,
    ),
    "cogvideox-image": image(
        lambda: cogvideo("CogVideoXImageToVideoPipeline", "cogvideox-image"),
        (48, 64),
        guidance_scale=6.0,
        num_frames=5,
        max_sequence_length=24,
    ),
    "ltx-image": image(
        lambda: ltx("LTXImageToVideoPipeline"),
        (64, 96),
        guidance_scale=3.0,
        num_frames=9,
        max_sequence_length=24,
    ),
    "ltx-condition": image(
        lambda: ltx("LTXConditionPipeline", flow()),
        (64, 96),
        guidance_scale=3.0,
        num_frames=9,
        max_sequence_length=24,
    ),
    "sana-video-image": image(
        lambda: sana_video("SanaImageToVideoPipeline", "sana_video_i2v", flow(shift=3.0)),
        (32, 64),
        frames=5,
        **SANA,
    ),
    "motif-video-image": image(
        motif_image, (32, 48), negative_prompt="blurry", num_frames=5, max_sequence_length=24
    ),
    "svd": image(svd, (16, 16), prompt=False, num_frames=3),
    "kandinsky5-image-to-video": image(
        lambda: kandinsky5("Kandinsky5I2VPipeline", videos.hunyuan(5), "kandinsky5_i2v"),
        (32, 48),
        guidance_scale=5.0,
        num_frames=21,  # the first four frames of latents are fitted to those after
    ),
    "kandinsky5-image-to-image": image(kandinsky5_edit, (64, 96), guidance_scale=3.5),
}
