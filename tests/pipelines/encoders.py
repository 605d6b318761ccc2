"""Text encoders of transformers, tiny: all of width 20 unless told otherwise, so that the zoo's denoisers fit."""

from __future__ import annotations

from typing import Any

import transformers
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from torch import nn
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tests.pipelines.words import VOCAB, tokenizer

WIDTH = 20
TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {"intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
LANGUAGE = {**TOKENS, **LAYERS, "hidden_size": WIDTH, "num_key_value_heads": 1, "head_dim": 10}
QWEN_VL = {
    **LANGUAGE,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 2]},
}
EYES = {
    "image_token_id": 6,
    "video_token_id": 9,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
}
IMAGES = {"image_size": 32, "patch_size": 16}
NARROW = {"hidden_size": 16, "intermediate_size": 20}
UNUSED_EYE = {
    **NARROW,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _model(model: str, config: str, **values: Any) -> nn.Module:
    return getattr(transformers, model)(getattr(transformers, config)(**values))


def clip(width: int = WIDTH, projection: int | None = None, **more: Any) -> nn.Module:
    """Return CLIP's text encoder; with a projection to that width if told so."""
    config = {
        **TOKENS,
        **LAYERS,
        "hidden_size": width,
        "projection_dim": projection or width,
        "max_position_embeddings": 77,
        **more,
    }
    return _model(
        "CLIPTextModelWithProjection" if projection else "CLIPTextModel", "CLIPTextConfig", **config
    )


def t5(width: int = WIDTH, name: str = "T5", **more: Any) -> nn.Module:
    """Return T5's encoder, or another of its form."""
    config = {
        "vocab_size": VOCAB,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "d_model": width,
        "d_kv": 5,
        "d_ff": 28,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        **more,
    }
    return _model(f"{name}EncoderModel", f"{name}Config", **config)


def bert(width: int = WIDTH, **more: Any) -> nn.Module:
    """Return BERT."""
    config = {"vocab_size": VOCAB, "pad_token_id": 0, "hidden_size": width, **LAYERS, **more}
    return _model("BertModel", "BertConfig", **config)


def language(model: str, config: str, **more: Any) -> nn.Module:
    """Return a causal language model of the usual form."""
    return _model(model, config, **{**LANGUAGE, **more})


def qwen_vl(**more: Any) -> nn.Module:
    """Return Qwen2.5-VL, whose head splits its 5 rotary pairs over time, height and width."""
    return _model(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        text_config={**QWEN_VL, **more},
        vision_config={
            **NARROW,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        **EYES,
    )


def mistral(model: str = "Mistral3ForConditionalGeneration") -> nn.Module:
    """Return Mistral 3 with its eyes, which are not used."""
    return _model(
        model,
        "Mistral3Config",
        text_config={"model_type": "mistral", **LANGUAGE},
        vision_config={"model_type": "pixtral", **UNUSED_EYE},
        image_token_index=VOCAB - 1,
    )


def qwen3_vl(model: str = "Qwen3VLForConditionalGeneration", **more: Any) -> nn.Module:
    """Return Qwen3-VL with its eyes, which are not used."""
    return _model(
        model,
        "Qwen3VLConfig",
        text_config={**QWEN_VL, **more},
        vision_config={
            **NARROW,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": more.get("hidden_size", WIDTH),
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **EYES,
    )


def t5_gemma() -> nn.Module:
    """Return the encoder of T5Gemma."""
    return T5GemmaEncoder(transformers.T5GemmaConfig(encoder=LANGUAGE, decoder=LANGUAGE).encoder)


def multilingual_clip(width: int, projection: int) -> nn.Module:
    """Return the text encoder of Kandinsky 2.1."""
    config = MCLIPConfig(
        transformerDimSize=width,
        imageDimSize=projection,
        vocab_size=VOCAB,
        hidden_size=width,
        pad_token_id=0,
        **LAYERS,
    )
    return MultilingualCLIP(config)


def clip_vision(width: int = WIDTH, projection: int | None = None, **more: Any) -> nn.Module:
    """Return CLIP's image encoder for images of 32 x 32; with a projection to that width if told so."""
    config = {
        **LAYERS,
        **IMAGES,
        "hidden_size": width,
        "projection_dim": projection or width,
        **more,
    }
    return _model(
        "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel", "CLIPVisionConfig", **config
    )


def clip_processor() -> Any:
    """Return what makes images of 32 x 32 for `clip_vision`."""
    return transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )


def gemma3() -> nn.Module:
    """Return Gemma 3 with its eyes, which are not used."""
    return _model(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        text_config={**LANGUAGE, "query_pre_attn_scalar": 10, "sliding_window": 64},
        vision_config=UNUSED_EYE,
        mm_tokens_per_image=1,
        image_token_index=VOCAB - 1,
        boi_token_index=7,
        eoi_token_index=8,
    )


def chatglm(width: int) -> nn.Module:
    """Return the text encoder of Kolors."""
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=VOCAB,
        hidden_size=width,
        ffn_hidden_size=20,
        kv_channels=width // 2,
        num_attention_heads=2,
        seq_length=64,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
    )
    return ChatGLMModel(config)


def qwen_vl_text(**more: Any) -> nn.Module:
    """Return the text part of Qwen2.5-VL."""
    return _model("Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", **{**QWEN_VL, **more})


def siglip(width: int = WIDTH) -> nn.Module:
    """Return SigLIP's image encoder, for images of 32 x 32."""
    return _model("SiglipVisionModel", "SiglipVisionConfig", hidden_size=width, **LAYERS, **IMAGES)


def siglip_processor() -> Any:
    """Return what makes images of 32 x 32 for `siglip`."""
    return transformers.SiglipImageProcessor(size={"height": 32, "width": 32})


def qwen_vl_processor() -> Any:
    """Return what makes texts and images for `qwen_vl`: a token for each 28 x 28 of an image."""
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=4 * 28 * 28),
        tokenizer=tokenizer(
            1200,
            end=False,
            extra_special_tokens={
                "image_token": "<|image_pad|>",
                "video_token": "<|video_pad|>",
                "vision_start_token": "<|vision_start|>",
                "vision_end_token": "<|vision_end|>",
            },
        ),
        video_processor=transformers.Qwen2VLVideoProcessor(),
    )


def llava() -> nn.Module:
    """Return Llava: Llama that sees what CLIP's image encoder says, four tokens an image."""
    return _model(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        text_config={"model_type": "llama", **LANGUAGE},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 14,
            "projection_dim": 14,
            **LAYERS,
            **IMAGES,
        },
        image_token_index=6,
        pad_token_id=0,
    )
