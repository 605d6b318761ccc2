"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLHunyuanImage
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

from tests.pipelines import videos
from tests.pipelines.base import assemble, denoiser, flow, image, text
from tests.pipelines.encoders import (
    clip,
    clip_processor,
    language,
    llava,
    qwen_vl,
    qwen_vl_text,
    siglip,
    siglip_processor,
    t5,
)
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 32, "width": 48, "num_frames": 9}
TEMPLATE = {"template": "Describe: {}", "crop_start": 5}
SEEING = {
    "template": "<|image_pad|>Describe: {}<|end_header_id|>",
    "crop_start": 5,
    "image_emb_len": 4,
    "image_emb_start": 1,
    "image_emb_end": 5,
}


def hunyuan_video(cls: str, transformer: Any, **more: Any) -> Any:
    components = {
        "text_encoder": language("LlamaModel", "LlamaConfig"),
        "tokenizer": tokenizer(begin=True, end=False),
        "transformer": transformer,
        "vae": videos.hunyuan(5),
        "scheduler": flow(shift=7.0),
        "text_encoder_2": clip(14),
        "tokenizer_2": clip_tokenizer(),
    }
    return assemble(cls, **{**components, **more})


def from_text() -> Any:
    return hunyuan_video("HunyuanVideoPipeline", denoiser("hunyuan_video"))


def from_image(model: str) -> Any:
    """The text encoder sees the image."""
    return hunyuan_video(
        "HunyuanVideoImageToVideoPipeline",
        denoiser(model),
        text_encoder=llava(),
        image_processor=clip_processor(),
    )


def skyreels() -> Any:
    return hunyuan_video("HunyuanSkyreelsImageToVideoPipeline", denoiser("hunyuan_video", in_channels=10))


def framepack() -> Any:
    """A section of the film at a time, after what was made before at three resolutions."""
    return hunyuan_video(
        "HunyuanVideoFramepackPipeline",
        denoiser("hunyuan_framepack"),
        image_encoder=siglip(18),
        feature_extractor=siglip_processor(),
    )


def hunyuan_video15() -> Any:
    """Its text and its image tokens, which say nothing here, are padded to fixed lengths."""
    pipeline = assemble(
        "HunyuanVideo15Pipeline",
        text_encoder=qwen_vl_text(),
        tokenizer=tokenizer(1200, end=False),
        transformer=denoiser("hunyuan_video15"),
        vae=videos.hunyuan15(5),
        scheduler=flow(shift=7.0),
        text_encoder_2=t5(14),
        tokenizer_2=tokenizer(256),
        guider=ClassifierFreeGuidance(guidance_scale=5.0),
    )
    pipeline.system_message, pipeline.prompt_template_encode_start_idx = "Describe.", 9
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = 96, 16
    pipeline.vision_num_semantic_tokens = 9
    return pipeline


def hunyuan_image() -> Any:
    """What stands in quotation marks is encoded by its letters as well."""
    pipeline = assemble(
        "HunyuanImagePipeline",
        scheduler=flow(shift=7.0),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=0.75,
        ),
        text_encoder=qwen_vl(num_hidden_layers=3),
        tokenizer=tokenizer(1200, end=False),
        text_encoder_2=t5(14),
        tokenizer_2=tokenizer(128),
        transformer=denoiser("hunyuan_image_glyphs", in_channels=8, out_channels=8),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5, enabled=True),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5, enabled=True),
    )
    pipeline.prompt_template_encode, pipeline.prompt_template_encode_start_idx = "Describe: {}", 10
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = 32, 16
    return pipeline


TEXT = {"prompt_template": TEMPLATE, "max_sequence_length": 32}
SEEN = {"prompt_template": SEEING, "max_sequence_length": 32}
GUIDED_TWICE = {"true_cfg_scale": 3.0, "negative_prompt": "blurry"}

PIPELINES = {
    "hunyuan-video": text(from_text, guidance_scale=6.0, **TEXT, **SIZE),
    "hunyuan-video-true-guidance": text(from_text, guidance_scale=6.0, **GUIDED_TWICE, **TEXT, **SIZE),
    "hunyuan-video15": text(hunyuan_video15, negative_prompt="blurry", height=32, width=48, num_frames=5),
    "hunyuan-image": text(hunyuan_image, negative_prompt="blurry", height=16, width=16),
    "hunyuan-video-image": image(
        lambda: from_image("hunyuan_video_token_replace"), (32, 48), guidance_scale=6.0, num_frames=9, **SEEN
    ),
    "hunyuan-video-image-concat": image(
        lambda: from_image("hunyuan_video_latent_concat"), (32, 48), num_frames=9, **GUIDED_TWICE, **SEEN
    ),
    "hunyuan-skyreels-image": image(skyreels, (32, 48), num_frames=9, **GUIDED_TWICE, **TEXT),
    "hunyuan-framepack": image(
        framepack, (64, 64), num_frames=18, latent_window_size=3, guidance_scale=6.0, **TEXT
    ),
}
