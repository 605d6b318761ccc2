"""Flux and its nearest relatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.pipelines.base import TinyPipeline, assemble, denoiser, flow, image, pictures, text
from tests.pipelines.decoders import kl, packed, shifted, wan
from tests.pipelines.encoders import WIDTH, clip, language, mistral, t5
from tests.pipelines.words import clip_tokenizer, tokenizer

SIZE = {"height": 16, "width": 24}
CALL = {"max_sequence_length": 24}


def flux(guidance: bool = True, cls: str = "FluxPipeline", **changes: Any) -> Any:
    name = "flux-guidance" if guidance else "flux"
    controlnet = {"controlnet": changes.pop("controlnet")} if "controlnet" in changes else {}
    config = {"in_channels": 8, "pooled_projection_dim": 20, **changes}
    return assemble(
        cls,
        **controlnet,
        scheduler=flow(shift=3.0, use_dynamic_shifting=guidance),
        vae=shifted(channels=2),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=denoiser(name, **config),
    )


def chroma(cls: str = "ChromaPipeline") -> Any:
    return assemble(
        cls,
        scheduler=flow(),
        vae=shifted(channels=2),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=denoiser("chroma", in_channels=8),
    )


def flux2(cls: str, text_encoder: Any, model: str, **more: Any) -> Any:
    """The latents' statistics are buffers of the autoencoder, and the text is three layers of a language model."""
    return assemble(
        cls,
        scheduler=flow(use_dynamic_shifting=True),
        vae=packed(2),
        text_encoder=text_encoder,
        tokenizer=tokenizer(512, end=False),
        transformer=denoiser(model, in_channels=8, joint_attention_dim=3 * WIDTH),
        **more,
    )


def klein(cls: str = "Flux2KleinPipeline") -> Any:
    return flux2(cls, language("Qwen3ForCausalLM", "Qwen3Config"), "flux2-klein")


def fill() -> TinyPipeline:
    """The latents of the image without the hole and the mask of the hole go in beside the noise."""
    entry = image(lambda: flux(cls="FluxFillPipeline", in_channels=32, out_channels=8), (16, 24), **CALL)
    holes = [mask for (mask,) in pictures(1, 16, 24)]
    inputs = [
        {**one, "mask_image": mask.convert("L")} for one, mask in zip(entry.inputs, holes[::-1], strict=True)
    ]
    return replace(entry, inputs=inputs)


def bria() -> Any:
    return assemble(
        "BriaPipeline",
        transformer=denoiser("bria", in_channels=8),
        scheduler=flow(use_dynamic_shifting=True),
        vae=kl(channels=2, stages=4),
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


def fibo() -> Any:
    """The text's last two layers go in at once, and one layer into each block."""
    return assemble(
        "BriaFiboPipeline",
        transformer=denoiser(
            "bria-fibo", in_channels=5, joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=wan(5),
        text_encoder=language("SmolLM3ForCausalLM", "SmolLM3Config", head_dim=10),
        tokenizer=tokenizer(end=False),
    )


PIPELINES = {
    "flux": text(lambda: flux(True), max_sequence_length=24, **SIZE),
    "flux-schnell": text(lambda: flux(False), max_sequence_length=24, **SIZE),
    # Guidance by a second call.
    "flux-true-guidance": text(
        lambda: flux(True), max_sequence_length=24, true_cfg_scale=3.0, negative_prompt="blurry", **SIZE
    ),
    "chroma": text(chroma, max_sequence_length=24, guidance_scale=4.0, **SIZE),
    "flux2": text(
        lambda: flux2("Flux2Pipeline", mistral(), "flux2"),
        max_sequence_length=400,
        text_encoder_out_layers=(0, 1, 2),
        **SIZE,
    ),
    "flux2-klein": text(
        klein, guidance_scale=4.0, max_sequence_length=96, text_encoder_out_layers=(0, 1, 2), **SIZE
    ),
    "bria": text(bria, max_sequence_length=24, height=32, width=48),
    "bria-fibo": text(fibo, negative_prompt="blurry", height=32, width=64),
    "flux-fill": fill(),
    "flux-control": image(
        lambda: flux(cls="FluxControlPipeline", in_channels=16, out_channels=8),
        (16, 24),
        "control_image",
        **CALL,
    ),
    "flux-kontext": image(
        lambda: flux(cls="FluxKontextPipeline"),
        (16, 24),
        max_area=16 * 24,
        _auto_resize=False,
        true_cfg_scale=3.0,
        negative_prompt="blurry",
        **CALL,
    ),
    # It keeps the keys and values of the given image from the first step on.
    "flux2-klein-kv": image(
        lambda: klein("Flux2KleinKVPipeline"),
        (64, 64),
        max_sequence_length=96,
        text_encoder_out_layers=(0, 1, 2),
    ),
}
