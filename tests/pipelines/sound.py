"""Sound: Stable Audio, ACE-Step, LongCat-Audio, AudioLDM 2."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel
from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from torch import nn

from tests.pipelines.base import assemble, denoiser, flow, scheduler, text
from tests.pipelines.decoders import kl
from tests.pipelines.encoders import TOKENS, language, t5, t5_gemma
from tests.pipelines.words import VOCAB, byte_vocabulary, tokenizer

RATE = 80


def oobleck(channels: int) -> nn.Module:
    """Return an autoencoder that makes 8 numbers of 2 channels from one latent, 80 numbers a second."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=4,
        decoder_input_channels=channels,
        sampling_rate=RATE,
    )


def stable_audio() -> Any:
    return assemble(
        "StableAudioPipeline",
        vae=oobleck(6),
        text_encoder=t5(14),
        projection_model=StableAudioProjectionModel(14, 14, 0, 32),
        tokenizer=tokenizer(32),
        transformer=denoiser("stable-audio", global_states_input_dim=28),
        scheduler=scheduler(
            "EDMDPMSolverMultistepScheduler",
            solver_order=2,
            prediction_type="v_prediction",
            sigma_data=1.0,
            sigma_schedule="exponential",
        ),
    )


def stable_audio3() -> Any:
    """The length in seconds is a token of the text as well."""
    return assemble(
        "StableAudio3Pipeline",
        vae=diffusers.AutoencoderSAME(
            patch_size=4,
            encoder_channels=8,
            encoder_c_mults=(2,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=10,
            dim_heads=8,
            sampling_rate=RATE,
        ),
        text_encoder=t5_gemma(),
        tokenizer=tokenizer(32),
        duration_embedder=StableAudio3DurationEmbedder(output_dim=20, fourier_dim=16),
        transformer=denoiser("stable_audio3", global_cond_dim=20),
        scheduler=flow(),
        gain={"vae": 3.0},
    )


def ace_step() -> Any:
    """Text, lyrics and timbre go in as one sequence; the context of the latents is silence and a mask."""
    return assemble(
        "AceStepPipeline",
        vae=oobleck(6),
        text_encoder=language("Qwen3Model", "Qwen3Config"),
        tokenizer=tokenizer(2048, end=False),
        transformer=denoiser("ace-step", in_channels=18),
        condition_encoder=AceStepConditionEncoder(
            hidden_size=32,
            intermediate_size=44,
            text_hidden_dim=20,
            timbre_hidden_dim=6,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=6,
            sliding_window=3,
        ),
        scheduler=flow(num_train_timesteps=1),
    )


def longcat() -> Any:
    return assemble(
        "LongCatAudioDiTPipeline",
        vae=diffusers.LongCatAudioDiTVae(
            channels=10,
            c_mults=[1, 2],
            strides=[2, 4],
            latent_dim=10,
            encoder_latent_dim=20,
            downsampling_ratio=8,
            sample_rate=RATE,
        ),
        text_encoder=t5(name="UMT5"),
        tokenizer=tokenizer(),
        transformer=denoiser("longcat_audio"),
        scheduler=flow(invert_sigmas=True),
    )


def clap() -> nn.Module:
    """Return CLAP; only its text encoder is used where one waveform is made."""
    tower = {"hidden_size": 16, "num_attention_heads": 2, "projection_dim": 12}
    return transformers.ClapModel(
        transformers.ClapConfig(
            text_config={
                **TOKENS,
                **tower,
                "intermediate_size": 28,
                "num_hidden_layers": 2,
                "max_position_embeddings": 80,
            },
            audio_config={
                **tower,
                "num_mel_bins": 8,
                "spec_size": 32,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "patch_embeds_hidden_size": 8,
                "depths": [1, 1],
                "num_hidden_layers": 2,
                "num_attention_heads": [2, 2],
                "window_size": 2,
            },
            projection_dim=12,
        )
    )


def audioldm2() -> Any:
    """A language model continues what CLAP and T5 say of the text; the UNet attends to that, and to T5."""
    vocabulary = byte_vocabulary()
    return assemble(
        "AudioLDM2Pipeline",
        vae=kl(channels=4, in_channels=1, out_channels=1),
        text_encoder=clap(),
        text_encoder_2=t5(14),
        projection_model=AudioLDM2ProjectionModel(12, 14, 10),
        language_model=transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCAB, n_embd=10, n_layer=1, n_head=2, n_positions=128, max_new_tokens=4
            )
        ),
        tokenizer=transformers.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=64),
        tokenizer_2=transformers.T5Tokenizer(
            vocab=[(token, -1.0) for token in vocabulary], extra_ids=0, model_max_length=64
        ),
        feature_extractor=None,
        unet=AudioLDM2UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(12, 20),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=((None, 10, 14),) * 2,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        scheduler=scheduler(
            "DDIMScheduler", beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear"
        ),
        vocoder=transformers.SpeechT5HifiGan(
            transformers.SpeechT5HifiGanConfig(
                model_in_dim=8,
                sampling_rate=RATE,
                upsample_initial_channel=8,
                upsample_rates=[2],
                upsample_kernel_sizes=[4],
                resblock_kernel_sizes=[3],
                resblock_dilation_sizes=[[1]],
                normalize_before=False,
            )
        ),
    )


PIPELINES = {
    "stable-audio": text(stable_audio, guidance_scale=7.0, audio_end_in_s=1.0),
    "stable-audio3": text(stable_audio3, guidance_scale=5.0, duration=1.5),
    "ace-step": text(ace_step, lyrics="la la", audio_duration=1.0, guidance_scale=7.0),
    "longcat-audio": text(longcat, guidance_scale=4.0, audio_duration_s=2.0),
    "audioldm2": text(audioldm2, guidance_scale=3.5, audio_length_in_s=0.8),
}
