"""How large recordings of real models are: what is said beforehand for inputs of native size; few layers suffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.recording import record
from pruning.recording.format import Head
from tests.pipelines.base import assemble, denoiser, flow, scheduler
from tests.pipelines.decoders import kl, shifted
from tests.pipelines.encoders import clip, t5
from tests.pipelines.words import clip_tokenizer, tokenizer

SAMPLES, POINTS = 256, 8
STEPS = 8
"""Sampling steps do not count: as many points are kept of more."""

TRANSFORMER = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 0,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
}
UNET = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "projection_class_embeddings_input_dim": 2816,
    "addition_time_embed_dim": 256,
    # Attention at the fewest tokens only: what the network is does not change what it is asked.
    "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 1,
    "attention_head_dim": 1,
    "layers_per_block": 1,
}


class Enough(Exception):
    """The size has been said."""


def flux() -> Any:
    return assemble(
        "FluxPipeline",
        scheduler=flow(shift=3.0, use_dynamic_shifting=True),
        vae=shifted(channels=16, stages=4),
        text_encoder=clip(768),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(4096),
        tokenizer_2=tokenizer(512),
        transformer=denoiser("flux-guidance", **TRANSFORMER),
    )


def sdxl() -> Any:
    return assemble(
        "StableDiffusionXLPipeline",
        vae=kl(stages=4),
        text_encoder=clip(768),
        text_encoder_2=clip(1280, projection=1280),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=denoiser("sdxl", **UNET),
        scheduler=scheduler("EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


@pytest.mark.parametrize(("make", "least", "most"), [(sdxl, 0.3e9, 0.5e9), (flux, 1.8e9, 2.5e9)])
def test_256_samples_at_native_size_take_as_much_as_the_docs_say(
    make: Any, least: float, most: float, tmp_path: Path
):
    pipeline = make().to(torch.bfloat16)
    prompts = [{"prompt": f"a picture of {number} things"} for number in range(SAMPLES)]

    def stop(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        record(
            pipeline,
            prompts,
            tmp_path,
            call={"num_inference_steps": STEPS, "height": 1024, "width": 1024},
            points=POINTS,
            progress=stop,
        )
    head = Head.read(tmp_path)
    assert head is not None
    assert least < head.bytes < most
    page = (Path(__file__).parents[2] / "docs" / "recording.md").read_text(encoding="utf-8")
    assert f"{head.bytes / 1e9:.2f} GB" in page
