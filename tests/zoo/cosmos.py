"""Cosmos: worlds of video from text; Cosmos 3 has two paths, one for text and one for what is generated."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.base import BATCH, Draw, Tiny

FRAMES = 2


def _world(draw: Draw) -> dict[str, Any]:
    return {
        "hidden_states": draw.normal(BATCH, 4, FRAMES, 8, 6),
        "timestep": draw.times(),
        "encoder_hidden_states": draw.normal(BATCH, 7, 20),
        "fps": 16,
        "padding_mask": draw.normal(1, 1, 8, 6),
    }


def _video_to_world(draw: Draw) -> dict[str, Any]:
    condition = torch.zeros(BATCH, 1, FRAMES, 8, 6)
    condition[:, :, 0] = 1.0
    times = torch.stack([draw.times(0.2), draw.times(1.0)], dim=1)
    return {**_world(draw), "timestep": times.view(BATCH, 1, FRAMES, 1, 1), "condition_mask": condition}


def _transfer(draw: Draw) -> dict[str, Any]:
    text = draw.normal(BATCH, 7, 28), draw.normal(BATCH, 5, 14)
    control = [draw.normal(BATCH, FRAMES * 4 * 3, 36) for _ in range(2)]
    return {**_video_to_world(draw), "encoder_hidden_states": text, "block_controlnet_hidden_states": control}


def _omni(draw: Draw) -> dict[str, Any]:
    """Pack five text tokens and a video of three frames, of which the first is clean, into one sequence."""
    text, frame = 5, 2 * 3
    tokens = text + 3 * frame
    noisy = torch.arange(text + frame, tokens)
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(3)) + torch.tensor(
        [text + 3, 0, 0]
    )
    return {
        "input_ids": draw.integers(40, text),
        "text_indexes": torch.arange(text),
        "position_ids": torch.cat([torch.arange(text)[:, None].expand(-1, 3), grid]).T,
        "und_len": text,
        "sequence_length": tokens,
        "vision_tokens": [draw.normal(1, 4, 3, 4, 6)],
        "vision_token_shapes": [(3, 2, 3)],
        "vision_sequence_indexes": torch.arange(text, tokens),
        "vision_mse_loss_indexes": noisy,
        "vision_timesteps": torch.full((len(noisy),), 700.0),
        "vision_noisy_frame_indexes": [torch.tensor([1, 2])],
    }


def _omni_sound_and_action(draw: Draw) -> dict[str, Any]:
    call = _omni(draw)
    start, sound, action = call["sequence_length"], 4, 3
    more = torch.arange(start, start + sound + action)
    places = torch.stack([more + 10, torch.zeros_like(more), torch.zeros_like(more)])
    return {
        **call,
        "position_ids": torch.cat([call["position_ids"], places], dim=1),
        "sequence_length": start + sound + action,
        "sound_tokens": [draw.normal(6, sound)],
        "sound_token_shapes": [(sound, 1, 1)],
        "sound_sequence_indexes": more[:sound],
        "sound_mse_loss_indexes": more[:sound],
        "sound_timesteps": torch.full((sound,), 700.0),
        "sound_noisy_frame_indexes": [torch.arange(sound)],
        "action_tokens": [draw.normal(action, 7)],
        "action_token_shapes": [(action, 1, 1)],
        "action_sequence_indexes": more[sound:],
        "action_mse_loss_indexes": more[sound + 1 :],
        "action_timesteps": torch.full((action - 1,), 700.0),
        "action_noisy_frame_indexes": [torch.tensor([1, 2])],
        "action_domain_ids": [torch.tensor(1)],
    }


_WORLD = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 3,
    "attention_head_dim": 12,
    "num_layers": 4,
    "mlp_ratio": 2.5,
    "text_embed_dim": 20,
    "adaln_lora_dim": 6,
    "max_size": (4, 16, 16),
}

_OMNI = {
    "head_dim": 8,
    "hidden_size": 24,
    "intermediate_size": 44,
    "latent_channel": 4,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "patch_latent_dim": 16,
    "rope_axes_dim": [2, 1, 1],
    "vocab_size": 40,
}

MODELS = {
    "cosmos": Tiny("CosmosTransformer3DModel", _WORLD, _world),
    # Cosmos-Predict2 from video: a time a frame, no learned positions.
    "cosmos2-video": Tiny(
        "CosmosTransformer3DModel",
        {**_WORLD, "in_channels": 5, "extra_pos_embed_type": None},
        _video_to_world,
    ),
    # Cosmos-Transfer2.5: text through a projection, an image beside it, residuals from a control network.
    "cosmos25-transfer": Tiny(
        "CosmosTransformer3DModel",
        {
            **_WORLD,
            "in_channels": 5,
            "extra_pos_embed_type": None,
            "use_crossattn_projection": True,
            "crossattn_proj_in_channels": 28,
            "encoder_hidden_states_channels": 20,
            "img_context_dim_in": 14,
            "img_context_num_tokens": 5,
            "img_context_dim_out": 36,
            "controlnet_block_every_n": 2,
        },
        _transfer,
    ),
    "cosmos3": Tiny("Cosmos3OmniTransformer", _OMNI, _omni),
    # The Nemotron form with sound and actions: ungated feed-forwards, no norms on the text's queries and keys.
    "cosmos3-sound-action": Tiny(
        "Cosmos3OmniTransformer",
        {
            **_OMNI,
            "hidden_act": "relu2",
            "qk_norm_for_text": False,
            "use_und_k_norm_for_gen": True,
            "sound_gen": True,
            "sound_dim": 6,
            "action_gen": True,
            "action_dim": 7,
            "num_embodiment_domains": 3,
        },
        _omni_sound_and_action,
    ),
}
