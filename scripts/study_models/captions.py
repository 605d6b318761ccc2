"""The text-conditional study model: captions of classes, a frozen causal text encoder, a pipeline on pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pruning.data import sample_generator
from pruning.data.rows import load_rows

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
"""Words for the classes of Fashion-MNIST, in order."""

TEMPLATES = (
    "a photo of a {}",
    "a {}",
    "{}",
    "a small grey picture of a {}",
    "one {} on a black background",
    "a {} from the shop, seen from the side",
)

TOKENS = 77
WIDTH = 64


def caption(label: int, row: int, seed: int = 0) -> str:
    """Return the caption of an image: its class in a template drawn by (seed, row)."""
    draw = torch.randint(len(TEMPLATES), (), generator=sample_generator(seed, row))
    return TEMPLATES[int(draw)].format(CLASSES[label])


def write_captions(source: str, split: str, out: Path) -> None:
    """Write a split of images of `CLASSES` with a further column ``caption`` to ``out/<split>.parquet``."""
    table = load_rows(source, split).table
    captions = [caption(label, row) for row, label in enumerate(table["label"])]
    out.mkdir(parents=True, exist_ok=True)
    table.add_column("caption", captions).to_parquet(out / f"{split}.parquet")  # type: ignore[call-arg]


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Return a CLIP tokenizer to which every word of the captions is one token, by way of files in `folder`.

    Merges take in a word from its end, so that no word's merges touch another's; unknown words are spelled out.
    """
    text = " ".join([*TEMPLATES, *CLASSES])
    words = sorted(
        {"".join(c for c in part if c.isalpha()) for part in text.replace("-", " ").split()} - {""}
    )
    characters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    ends = [f"{c}</w>" for c in characters]
    pairs = dict.fromkeys(
        (word[i], f"{word[i + 1 :]}</w>") for word in words for i in range(len(word) - 2, -1, -1)
    )
    tokens = [*characters, *ends, *map("".join, pairs), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({token: i for i, token in enumerate(tokens)})
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *map(" ".join, pairs), ""])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TOKENS)


def text_encoder(words: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """Return a random, frozen, causal text encoder: its first token sees only itself, so it tells nothing."""
    ends: dict[str, Any] = {
        f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        **ends,
    )
    torch.manual_seed(seed)  # transformers draws first weights from the global generator
    return CLIPTextModel(config).eval().requires_grad_(False)


def pixel_autoencoder() -> AutoencoderTiny:
    """Return an autoencoder of grey images whose latents, once scaled, are the pixels (to about 1e-5).

    Pipelines want one. Its convolutions hand on the middle pixel; latents are small, so that the decoder's
    ``3 tanh(x / 3)`` leaves them alone, and a bias keeps its ReLU open.
    """
    small, open_relu = 2.0**-8, 8.0
    vae = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        encoder_block_out_channels=(1,),
        decoder_block_out_channels=(1,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        scaling_factor=1 / small,
    )
    values = {  # the encoder is given (x + 1) / 2, and the decoder is to return it
        "encoder.layers.0": (1.0, 0.0),
        "encoder.layers.1": (2 * small, -small),
        "decoder.layers.0": (1 / (2 * small), 0.5 + open_relu),
        "decoder.layers.2": (1.0, -open_relu),
    }
    with torch.no_grad():
        for path, (middle, bias) in values.items():
            convolution: Any = vae.get_submodule(path)
            nn.init.dirac_(convolution.weight).mul_(middle)
            convolution.bias.fill_(bias)
    return vae.eval()


def text_pipeline(folder: Path, seed: int) -> StableDiffusionPipeline:
    """Return the untrained pipeline: a UNet of 7 transformer blocks with heads of 16 on 16 x 16 grey pixels.

    Args:
        folder: Where the tokenizer's files go.
        seed: Of all first weights.
    """
    words = tokenizer(folder)
    encoder = text_encoder(words, seed)
    torch.manual_seed(seed + 1)
    heads: Any = (2, 4, 8)  # diffusers takes their number by the name of their size
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=heads,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="trailing",
        clip_sample=False,  # this and the next as the pipeline wants them
        steps_offset=1,
    )
    parts: dict[str, Any] = {
        "vae": pixel_autoencoder(),
        "text_encoder": encoder,
        "tokenizer": words,
        "unet": unet,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)
