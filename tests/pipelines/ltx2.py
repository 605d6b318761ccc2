"""LTX-2: video and sound, each with latents and a scheduler of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

from tests.pipelines.base import TinyPipeline, assemble, denoiser, flow, image, text
from tests.pipelines.encoders import gemma3
from tests.pipelines.words import tokenizer

CALL = {
    "guidance_scale": 3.0,
    "spatio_temporal_guidance_blocks": [1],
    "num_frames": 9,
    "frame_rate": 8.0,
    "max_sequence_length": 32,
}

SIZE = {"height": 64, "width": 96}
DOUBLED = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}


def parts(model: str) -> dict[str, Any]:
    """The embedding and the two layers of the text encoder go in, through a connector for each stream."""
    wide = model != "ltx2"
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": diffusers.AutoencoderKLLTX2Video(
            latent_channels=10,
            block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 4,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
        "audio_vae": diffusers.AutoencoderKLLTX2Audio(
            base_channels=6,
            latent_channels=2,
            mel_bins=12,
            num_res_blocks=1,
            sample_rate=160,
            mel_hop_length=10,
        ),
        "text_encoder": gemma3(),
        "tokenizer": tokenizer(64, begin=True, end=False),
        "connectors": LTX2TextConnectors(
            caption_channels=20,
            text_proj_in_factor=3,
            video_connector_num_attention_heads=4 if wide else 2,
            video_connector_attention_head_dim=12 if wide else 10,
            video_connector_num_layers=1,
            video_connector_num_learnable_registers=8,
            audio_connector_num_attention_heads=4 if wide else 2,
            audio_connector_attention_head_dim=8 if wide else 10,
            audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=8,
            connector_rope_base_seq_len=32,
            rope_double_precision=False,
            rope_type="split",
            per_modality_projections=wide,
            video_hidden_dim=48,
            audio_hidden_dim=32,
        ),
        "transformer": denoiser(model),
        "vocoder": LTX2Vocoder(
            in_channels=24,
            hidden_channels=8,
            upsample_kernel_sizes=[4],
            upsample_factors=[2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1]],
        ),
    }


def ltx2(model: str, cls: str = "LTX2Pipeline") -> Any:
    return assemble(cls, **parts(model))


def conditions() -> TinyPipeline:
    """Any frame may be given; here the first."""
    entry = image(lambda: ltx2("ltx2", "LTX2ConditionPipeline"), (64, 96), **DOUBLED, **CALL)
    inputs = [
        {"prompt": one["prompt"], "conditions": [LTX2VideoCondition(one["image"], crf=0)]}
        for one in entry.inputs
    ]
    return replace(entry, inputs=inputs)


PIPELINES = {
    # Guidance by a doubled batch only.
    "ltx2": text(lambda: ltx2("ltx2"), **SIZE, **DOUBLED, **CALL),
    # And by calls with attention left out, and with the streams kept apart.
    "ltx23": text(lambda: ltx2("ltx23"), **SIZE, **CALL),
    "ltx2-image": image(
        lambda: ltx2("ltx2", "LTX2ImageToVideoPipeline"), (64, 96), image_crf=0, **DOUBLED, **CALL
    ),
    "ltx2-condition": conditions(),
}
