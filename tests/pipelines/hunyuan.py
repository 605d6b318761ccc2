"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLHunyuanImage
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

from tests.pipelines import videos
from tests.pipelines.base import assemble, denoiser, flow, text
from tests.pipelines.encoders import clip, language, qwen_vl, qwen_vl_text, t5
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 32, "width": 48, "num_frames": 9}
TEMPLATE = {"template": "Describe: {}", "crop_start": 5}


def hunyuan_video() -> Any:
    return assemble(
        "HunyuanVideoPipeline",
        text_encoder=language("LlamaModel", "LlamaConfig"),
        tokenizer=tokenizer(begin=True, end=False),
        transformer=denoiser("hunyuan_video"),
        vae=videos.hunyuan(5),
        scheduler=flow(shift=7.0),
        text_encoder_2=clip(14),
        tokenizer_2=clip_tokenizer(),
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
    pipeline.tokenizer_max_length = 600
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
    pipeline.tokenizer_max_length = 300
    return pipeline


PIPELINES = {
    "hunyuan-video": text(
        hunyuan_video, guidance_scale=6.0, prompt_template=TEMPLATE, max_sequence_length=32, **SIZE
    ),
    "hunyuan-video-true-guidance": text(
        hunyuan_video,
        guidance_scale=6.0,
        true_cfg_scale=3.0,
        negative_prompt="blurry",
        prompt_template=TEMPLATE,
        max_sequence_length=32,
        **SIZE,
    ),
    "hunyuan-video15": text(hunyuan_video15, negative_prompt="blurry", height=32, width=48, num_frames=5),
    "hunyuan-image": text(hunyuan_image, negative_prompt="blurry", height=16, width=16),
}
