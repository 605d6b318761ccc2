"""HunyuanVideo, its FramePack form, HunyuanVideo 1.5 and HunyuanImage: joint attention and a token refiner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.base import BATCH, Draw, Tiny

VIDEO: dict[str, Any] = {
    "in_channels": 5,
    "out_channels": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "num_single_layers": 3,
    "num_refiner_layers": 2,
    "mlp_ratio": 2.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "text_embed_dim": 20,
    "pooled_projection_dim": 14,
    "rope_axes_dim": (4, 4, 4),
}
FRAMEPACK: dict[str, Any] = VIDEO | {
    "has_image_proj": True,
    "image_proj_dim": 18,
    "has_clean_x_embedder": True,
}
VIDEO15: dict[str, Any] = {
    "in_channels": 11,
    "out_channels": 5,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "num_refiner_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": 20,
    "text_embed_2_dim": 14,
    "image_embed_dim": 18,
    "rope_axes_dim": (4, 4, 4),
}
IMAGE: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 10,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 3,
    "num_single_layers": 3,
    "num_refiner_layers": 2,
    "mlp_ratio": 2.0,
    "patch_size": (1, 1),
    "text_embed_dim": 20,
    "rope_axes_dim": (6, 6),
}
GLYPHS: dict[str, Any] = {"text_embed_2_dim": 14}
DISTILLED: dict[str, Any] = GLYPHS | {"guidance_embeds": True, "use_meanflow": True}
REFINER: dict[str, Any] = {
    "in_channels": 12,
    "out_channels": 6,
    "patch_size": (1, 1, 1),
    "rope_axes_dim": (4, 4, 4),
}


def _mask(size: int, *lengths: int) -> Tensor:
    return (torch.arange(size) < torch.tensor(lengths)[:, None]).long()


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "encoder_attention_mask": _mask(7, 7, 5),
    }


def _video(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 5, 3, 4, 6),
        "pooled_projections": draw.normal(BATCH, 14),
    }


def _guided(draw: Draw) -> dict[str, Any]:
    return _video(draw) | {"guidance": torch.tensor([3000.0, 6000.0])}


def _latent_concat(draw: Draw) -> dict[str, Any]:
    return _video(draw) | {"hidden_states": draw.normal(BATCH, 11, 3, 4, 6)}


def _framepack(draw: Draw) -> dict[str, Any]:
    """Clean frames and histories at a half and a quarter of the resolution come before the frames to be made."""
    frames = torch.arange(11)
    return _guided(draw) | {
        "hidden_states": draw.normal(BATCH, 5, 3, 8, 8),
        "image_embeds": draw.normal(BATCH, 4, 18),
        "indices_latents": frames[8:],
        "latents_clean": draw.normal(BATCH, 5, 2, 8, 8),
        "indices_latents_clean": frames[:2],
        "latents_history_2x": draw.normal(BATCH, 5, 2, 8, 8),
        "indices_latents_history_2x": frames[2:4],
        "latents_history_4x": draw.normal(BATCH, 5, 4, 8, 8),
        "indices_latents_history_4x": frames[4:8],
    }


def _glyphs(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {
        "encoder_hidden_states_2": draw.normal(BATCH, 6, 14),
        "encoder_attention_mask_2": _mask(6, 3, 6),
    }


def _video15(draw: Draw) -> dict[str, Any]:
    return _glyphs(draw) | {
        "hidden_states": draw.normal(BATCH, 11, 2, 3, 4),
        "image_embeds": draw.normal(BATCH, 4, 18),
    }


def _video15_meanflow(draw: Draw) -> dict[str, Any]:
    return _video15(draw) | {"timestep_r": draw.times() / 2}


def _video15_text(draw: Draw) -> dict[str, Any]:
    """Text to video: image embeddings of zero are masked out."""
    return _video15(draw) | {"image_embeds": torch.zeros(BATCH, 4, 18)}


def _image(draw: Draw) -> dict[str, Any]:
    return _text(draw) | {"hidden_states": draw.normal(BATCH, 10, 4, 5)}


def _image_glyphs(draw: Draw) -> dict[str, Any]:
    return _glyphs(draw) | {"hidden_states": draw.normal(BATCH, 10, 4, 5)}


def _image_distilled(draw: Draw) -> dict[str, Any]:
    return _image_glyphs(draw) | {"timestep_r": draw.times() / 2, "guidance": torch.tensor([3000.0, 6000.0])}


def _image_refiner(draw: Draw) -> dict[str, Any]:
    """Latents and those of the image that is refined, with an axis of frames."""
    return _text(draw) | {
        "hidden_states": draw.normal(BATCH, 12, 1, 4, 5),
        "guidance": torch.tensor([3000.0, 6000.0]),
    }


MODELS = {
    "hunyuan_video": Tiny("HunyuanVideoTransformer3DModel", VIDEO, _guided),
    "hunyuan_video_latent_concat": Tiny(
        "HunyuanVideoTransformer3DModel",
        VIDEO | {"in_channels": 11, "guidance_embeds": False, "image_condition_type": "latent_concat"},
        _latent_concat,
    ),
    "hunyuan_video_token_replace": Tiny(
        "HunyuanVideoTransformer3DModel", VIDEO | {"image_condition_type": "token_replace"}, _guided
    ),
    "hunyuan_framepack": Tiny("HunyuanVideoFramepackTransformer3DModel", FRAMEPACK, _framepack),
    "hunyuan_video15": Tiny("HunyuanVideo15Transformer3DModel", VIDEO15, _video15),
    "hunyuan_video15_text": Tiny("HunyuanVideo15Transformer3DModel", VIDEO15, _video15_text),
    "hunyuan_video15_meanflow": Tiny(
        "HunyuanVideo15Transformer3DModel", VIDEO15 | {"use_meanflow": True}, _video15_meanflow
    ),
    "hunyuan_image": Tiny("HunyuanImageTransformer2DModel", IMAGE, _image),
    "hunyuan_image_glyphs": Tiny("HunyuanImageTransformer2DModel", IMAGE | GLYPHS, _image_glyphs),
    "hunyuan_image_distilled": Tiny("HunyuanImageTransformer2DModel", IMAGE | DISTILLED, _image_distilled),
    "hunyuan_image_refiner": Tiny(
        "HunyuanImageTransformer2DModel", IMAGE | REFINER | {"guidance_embeds": True}, _image_refiner
    ),
}
