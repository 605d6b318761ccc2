"""Tiny random pipelines built locally: SD 1.x, SDXL, DiT with a VAE, DDPM, Flux, Latte (videos), and one of sounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AudioPipelineOutput,
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LattePipeline,
    LatteTransformer3DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.models import dit, randomise, unet2d, unet2d_condition
from tests.zoo import ZOO

WORDS = ("a", "red", "blue", "cat", "dog", "of")


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows letters and a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def text_config(width: int = 24, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=30,
        patch_size=10,
        projection_dim=16,
    )


def tiny_clip(folder: Path) -> Path:
    """Write a tiny random CLIP with its processor to a folder, whose images and texts are of all likenesses."""
    parts = {"text_config": text_config().to_dict(), "vision_config": vision_config().to_dict()}
    randomise(CLIPModel(CLIPConfig(**parts, projection_dim=16)), seed=1, gain=2.0).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer(folder / "words")).save_pretrained(folder)
    return folder


def byte_tokenizer(length: int = 24) -> PreTrainedTokenizerFast:
    """Return a tokenizer like T5's, of a token a byte."""
    letters = ["<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, [], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def t5() -> T5EncoderModel:
    torch.manual_seed(0)
    config = T5Config(vocab_size=259, d_model=20, d_kv=5, d_ff=28, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval()


def vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    """Return an autoencoder that halves the resolution: 3 channels -> 4 latent channels, or as many as asked."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **more,
    ).eval()


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokenizer(folder / "words"),
        unet=unet2d_condition(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    unet = unet2d_condition(
        cross_attention_dim=48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    words = tokenizer(folder / "words")
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False),
        add_watermarker=False,
    )


def dit_latent() -> DiTPipeline:
    """Return a DiT of 1,000 classes (the pipeline's null class is fixed at 1000) with learned sigma."""
    model = dit(in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    return DiTPipeline(transformer=model, vae=vae(), scheduler=DDIMScheduler(clip_sample=False))


def ddpm() -> DDPMPipeline:
    return DDPMPipeline(unet=unet2d(), scheduler=DDPMScheduler())


FLUX_CALL = {"height": 16, "width": 24, "max_sequence_length": 24}
LATTE_CALL = {"height": 8, "width": 8, "video_length": 3, "clean_caption": False}


def flux(folder: Path) -> FluxPipeline:
    """Return a text-to-image pipeline of flow matching: no family of ours, no sample_size, a shift by resolution."""
    transformer = FluxTransformer2DModel(
        **{**ZOO["flux-guidance"].config, "in_channels": 8, "pooled_projection_dim": 24}
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(2, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(text_config()).eval(),
        tokenizer=tokenizer(folder / "words"),
        text_encoder_2=t5(),
        tokenizer_2=byte_tokenizer(),
        transformer=randomise(transformer),
    )


def latte() -> LattePipeline:
    """Return a text-to-video pipeline whose samples change with those beside them."""
    return LattePipeline(
        tokenizer=byte_tokenizer(120),
        text_encoder=t5(),
        vae=vae(),
        transformer=randomise(LatteTransformer3DModel(**ZOO["latte"].config), gain=0.7),
        scheduler=DDIMScheduler(clip_sample=False),
    )


class SoundPipeline(DiffusionPipeline):
    """Sounds without a name for their channel, from a UNet on 8 x 8 numbers."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: Any = None,
        num_inference_steps: int = 3,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> Any:
        images = DDPMPipeline(self.unet, self.scheduler)(
            batch_size, generator, num_inference_steps, output_type="np"
        ).images
        sounds = images.reshape(len(images), -1) * 2 - 1
        return AudioPipelineOutput(audios=sounds) if return_dict else (sounds,)
