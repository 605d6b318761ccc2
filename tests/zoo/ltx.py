"""LTX-Video and LTX-2: rotary tables over all heads, norms across heads; LTX-2 has a video and an audio stream."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

CONFIG: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 10,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "num_layers": 3,
    "caption_channels": 20,
}
CONFIG2: dict[str, Any] = {
    "in_channels": 10,
    "out_channels": 10,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 32,
    "num_layers": 3,
    "caption_channels": 20,
    "rope_type": "split",
    "rope_double_precision": False,
}
CONFIG23: dict[str, Any] = CONFIG2 | {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
CONFIG25: dict[str, Any] = CONFIG23 | {
    "ff_bias": False,
    "audio_ff_bias": False,
    "use_prompt_adaln_single": False,
    "use_keyframes_abs_pos_embedding": True,
}


def _text(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 24, 10),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "timestep": draw.times(),
        "encoder_attention_mask": torch.arange(7) < torch.tensor([[7], [5]]),
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "rope_interpolation_scale": (0.32, 32, 32),
    }


def _token_times(draw: Draw) -> dict[str, Any]:
    """Image to video: the tokens of the given frame have time 0; coordinates are given, shape (2, 3, 24)."""
    coords = torch.stack(
        torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij")
    ).flatten(1)
    inputs = _text(draw) | {
        "timestep": draw.times()[:, None] * (torch.arange(24) >= 12),
        "video_coords": coords.expand(BATCH, -1, -1) * torch.tensor([0.32, 32, 32])[:, None],
    }
    return {
        k: v
        for k, v in inputs.items()
        if k not in ("num_frames", "height", "width", "rope_interpolation_scale")
    }


def _video_audio(draw: Draw, widths: tuple[int, int] = (20, 20)) -> dict[str, Any]:
    mask = torch.arange(7) < torch.tensor([[7], [5]])
    return {
        "hidden_states": draw.normal(BATCH, 24, 10),
        "audio_hidden_states": draw.normal(BATCH, 9, 6),
        "encoder_hidden_states": draw.normal(BATCH, 7, widths[0]),
        "audio_encoder_hidden_states": draw.normal(BATCH, 7, widths[1]),
        "timestep": draw.times(),
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "num_frames": 2,
        "height": 3,
        "width": 4,
        "fps": 24.0,
        "audio_num_frames": 9,
    }


def _connected(draw: Draw) -> dict[str, Any]:
    """LTX-2.3: the text comes in the width of each stream and is modulated by the noise level."""
    return _video_audio(draw, (48, 32)) | {"sigma": draw.times()}


def _skipped_attention(draw: Draw) -> dict[str, Any]:
    """LTX-2.3's guidance: self-attention of some blocks is left out for one sample."""
    return _connected(draw) | {
        "spatio_temporal_guidance_blocks": [1],
        "perturbation_mask": torch.tensor([1.0, 0.0]),
    }


def _keyframes(draw: Draw) -> dict[str, Any]:
    """LTX-2.5: the tokens of the first frame are marked as given."""
    return _video_audio(draw, (48, 32)) | {
        "video_keyframes_mask": (torch.arange(24) < 12).float()[None, :, None].repeat(BATCH, 1, 1)
    }


MODELS = {
    "ltx": Tiny("LTXVideoTransformer3DModel", CONFIG, _text),
    "ltx_token_times": Tiny("LTXVideoTransformer3DModel", CONFIG, _token_times),
    "ltx2": Tiny("LTX2VideoTransformer3DModel", CONFIG2, _video_audio),
    "ltx2_interleaved": Tiny(
        "LTX2VideoTransformer3DModel", CONFIG2 | {"rope_type": "interleaved"}, _video_audio
    ),
    "ltx23": Tiny("LTX2VideoTransformer3DModel", CONFIG23, _connected),
    "ltx25": Tiny("LTX2VideoTransformer3DModel", CONFIG25, _keyframes),
    "ltx23_perturbed": Tiny("LTX2VideoTransformer3DModel", CONFIG23, _skipped_attention),
}
