"""Text encoders of transformers, tiny: all of width 20 unless told otherwise, so that the zoo's denoisers fit."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from tests.pipelines.words import VOCAB

WIDTH = 20
TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LANGUAGE = {
    **TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 10,
}


def _model(model: str, config: str, **values: Any) -> nn.Module:
    return getattr(transformers, model)(getattr(transformers, config)(**values))


def clip(width: int = WIDTH, projection: int | None = None, **more: Any) -> nn.Module:
    """Return CLIP's text encoder; with a projection to that width if told so."""
    config = {
        **TOKENS,
        "hidden_size": width,
        "intermediate_size": 28,
        "projection_dim": projection or width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        **more,
    }
    return _model("CLIPTextModelWithProjection" if projection else "CLIPTextModel", "CLIPTextConfig", **config)


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
    config = {
        "vocab_size": VOCAB,
        "pad_token_id": 0,
        "hidden_size": width,
        "intermediate_size": 28,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **more,
    }
    return _model("BertModel", "BertConfig", **config)


def language(model: str, config: str, **more: Any) -> nn.Module:
    """Return a causal language model of the usual form."""
    return _model(model, config, **{**LANGUAGE, **more})


def qwen_vl(**more: Any) -> nn.Module:
    """Return Qwen2.5-VL, whose head splits its 5 rotary pairs over time, height and width."""
    return _model(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        text_config={
            **LANGUAGE,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 2]},
            **more,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 20,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
        **{f"{name}_token_id": VOCAB - 1 - k for k, name in enumerate(("image", "video", "vision_start", "vision_end"))},
    )
