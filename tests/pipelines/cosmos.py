"""Cosmos: worlds from text."""

from __future__ import annotations

from typing import Any

from diffusers import CosmosControlNetModel

from tests.pipelines import videos
from tests.pipelines.base import assemble, denoiser, flow, image, scheduler, text
from tests.pipelines.decoders import wan
from tests.pipelines.encoders import qwen_vl, t5
from tests.pipelines.words import VOCAB, tokenizer

CALL = {"guidance_scale": 5.0, "height": 64, "width": 48}


class AllowAll:
    """Stands for the guard rails, whose library need not be here."""

    def to(self, *_: Any) -> AllowAll:
        return self

    def check_text_safety(self, _: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def world(cls: str, vae: Any, sampler: Any, **more: Any) -> Any:
    components = {
        "text_encoder": t5(),
        "tokenizer": tokenizer(),
        "transformer": denoiser("cosmos"),
        "vae": vae,
        "scheduler": sampler,
        "safety_checker": AllowAll(),
    }
    return assemble(cls, **{**components, **more})


def karras() -> Any:
    return flow(use_karras_sigmas=True)


def edm() -> Any:
    return scheduler("EDMEulerScheduler", sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)


def unipc() -> Any:
    return scheduler(
        "UniPCMultistepScheduler",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_karras_sigmas=True,
        sigma_max=200.0,
        sigma_min=0.01,
    )


PROJECTION = {
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 40,
    "encoder_hidden_states_channels": 20,
}


def version25(cls: str, transformer: Any, **more: Any) -> Any:
    """The text is what all layers of a language model say, one after another, and is projected first."""
    return world(
        cls,
        wan(4),
        unipc(),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(512, end=False),
        transformer=transformer,
        **more,
    )


def predict25() -> Any:
    return version25("Cosmos2_5_PredictBasePipeline", denoiser("cosmos2-video", **PROJECTION))


def transfer25() -> Any:
    """A second network adds to the residual stream what it makes of a film of edges or depths."""
    control = CosmosControlNetModel(
        n_controlnet_blocks=2,
        in_channels=12,
        latent_channels=6,
        model_channels=36,
        num_attention_heads=3,
        attention_head_dim=12,
        mlp_ratio=2.5,
        text_embed_dim=20,
        adaln_lora_dim=6,
        max_size=(4, 16, 16),
        img_context_dim_in=14,
        img_context_dim_out=36,
        **PROJECTION,
    )
    return version25(
        "Cosmos2_5_TransferPipeline", denoiser("cosmos25-transfer", **PROJECTION), controlnet=control
    )


def from_image(cls: str, vae: Any, sampler: Any, model: str) -> Any:
    return world(cls, vae, sampler, transformer=denoiser(model, in_channels=5))


def omni() -> Any:
    """Text and video in one sequence, one sample a call; the text has no encoder of its own."""
    return assemble(
        "Cosmos3OmniPipeline",
        transformer=denoiser("cosmos3", vocab_size=VOCAB),
        text_tokenizer=tokenizer(512, end=False),
        vae=wan(4),
        scheduler=unipc(),
        enable_safety_checker=False,
    )


PIPELINES = {
    "cosmos3": text(omni, num_frames=5, **CALL),
    "cosmos": text(
        lambda: world("CosmosTextToWorldPipeline", videos.cosmos(), edm()),
        num_frames=9,
        max_sequence_length=24,
        **CALL,
    ),
    "cosmos2-image": text(
        lambda: world("Cosmos2TextToImagePipeline", wan(4), karras()), max_sequence_length=24, **CALL
    ),
    "cosmos25": text(predict25, num_frames=5, max_sequence_length=200, **CALL),
    "cosmos-video": image(
        lambda: from_image("CosmosVideoToWorldPipeline", videos.cosmos(), edm(), "cosmos"),
        (64, 48),
        guidance_scale=5.0,
        num_frames=17,
        max_sequence_length=24,
    ),
    "cosmos2-video": image(
        lambda: from_image("Cosmos2VideoToWorldPipeline", wan(4), karras(), "cosmos2-video"),
        (64, 48),
        guidance_scale=5.0,
        num_frames=5,
        max_sequence_length=24,
    ),
    "cosmos25-transfer": image(
        transfer25,
        (64, 48),
        "controls",
        film=5,
        guidance_scale=5.0,
        num_frames=5,
        num_frames_per_chunk=5,
        max_sequence_length=200,
    ),
}
