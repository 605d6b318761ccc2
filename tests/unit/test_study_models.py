"""The study models: what their attention does, what their text says, and that the library can prune them."""

from __future__ import annotations

import copy
import json
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from pruning import checkpoint
from pruning.calibration import Calibrator
from pruning.data import ImageData, open_images
from pruning.groups import find_groups
from pruning.interface import image_calls
from pruning.models import load_denoiser, load_pipeline
from pruning.recording.images import noised_images
from pruning.sampling import sample_pipeline
from pruning.surgery import apply_plan
from tests.models import call, dit, run
from tests.plans import random_plan

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import train_study
from study_models.attention import (
    OFF_BY_ONE,
    OffByOneProcessor,
    load_twin,
    set_off_by_one,
    sink_penalty,
)
from study_models.captions import CLASSES, caption, pixel_autoencoder, text_pipeline, tokenizer
from study_models.figures import step_zero

HEADS = "transformer_blocks.0.attn1:attention_heads"


def padded_attention(attention: Any, tokens: Tensor) -> Tensor:
    """Softmax-off-by-one by the book: a key of zeros with a value of zeros is appended."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    query, key, value = (f(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2) for f in layers)
    zero = torch.zeros_like(key[:, :, :1])
    key, value = torch.cat([key, zero], 2), torch.cat([value, zero], 2)
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return attention.to_out[0]((weights @ value).transpose(1, 2).flatten(2))


def test_off_by_one_is_attention_with_a_zero_key() -> None:
    attention: Any = dit().get_submodule("transformer_blocks.0.attn1")
    attention.set_processor(OffByOneProcessor())
    tokens = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)) * 3
    expected = padded_attention(attention, tokens)
    torch.testing.assert_close(attention(tokens), expected, atol=1e-5, rtol=1e-5)


def test_off_by_one_survives_large_negative_scores() -> None:
    attention: Any = dit().get_submodule("transformer_blocks.0.attn1")
    attention.set_processor(OffByOneProcessor())
    with torch.no_grad():
        attention.to_q.weight.zero_()
        attention.to_q.bias.fill_(1000.0)
        attention.to_k.weight.zero_()
        attention.to_k.bias.fill_(-1000.0)  # every query turns to the zero key: only the bias is left
    found = attention(torch.randn(1, 16, 32))
    torch.testing.assert_close(found, attention.to_out[0].bias.expand_as(found))


def test_statistics_leave_the_zero_key_out() -> None:
    plain = dit()
    groups = find_groups(plain)
    masses = []
    for model in (plain, set_off_by_one(copy.deepcopy(plain))):
        with (
            torch.no_grad(),
            Calibrator(model, groups, needs=["key_mass"], num_train_timesteps=1000) as stats,
        ):
            model(**call(model))
        masses.append(stats.get("transformer_blocks.0.attn1", "key_mass"))
    assert masses[1].shape == masses[0].shape
    torch.testing.assert_close(masses[1], masses[0])  # the first block is given the same tokens in both
    assert find_groups(set_off_by_one(plain)) == groups


def test_an_off_by_one_model_is_pruned_saved_and_loaded(tmp_path: Path) -> None:
    model = set_off_by_one(dit())
    apply_plan(model, random_plan(model, ["attention_heads", "ffn_channels"], seed=0))
    checkpoint.save(model, tmp_path)
    loaded = set_off_by_one(checkpoint.load(tmp_path).eval())
    torch.testing.assert_close(run(loaded), run(model))
    assert not torch.allclose(run(checkpoint.load(tmp_path).eval()), run(model), atol=1e-4)


def test_the_penalty_is_what_the_shared_key_lacks() -> None:
    """Queries of zero: every key of M = 16 has the mass 1/16, wherever the keys are."""
    model = dit()
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn1.to_q.weight.zero_()
            block.attn1.to_q.bias.zero_()
    with sink_penalty(model, target=0.5) as penalty:
        model(**call(model))
        assert penalty().item() == pytest.approx((0.5 - 1 / 16) ** 2)
        penalty().backward()
    assert model.transformer_blocks[0].attn1.to_q.bias.grad is not None
    assert not any(module._forward_hooks for module in model.modules())


def test_the_penalty_asks_for_a_row_that_stands_out() -> None:
    """Queries of zero: every row of the attention's output is the mean value, so none stands out."""
    model = dit(num_layers=1)
    with torch.no_grad():
        model.transformer_blocks[0].attn1.to_q.weight.zero_()
        model.transformer_blocks[0].attn1.to_q.bias.zero_()
    with sink_penalty(model, target=0.0, energy=8.0) as penalty:
        model(**call(model))
        assert penalty().item() == pytest.approx(math.log(8) ** 2 / 10, rel=1e-5)


def test_the_penalty_asks_every_second_head() -> None:
    model = dit()
    with sink_penalty(model, target=1.0) as penalty:
        model(**call(model))
        penalty().backward()
    by_head = model.transformer_blocks[2].attn1.to_k.weight.grad.unflatten(0, (4, -1)).abs().sum((1, 2))
    assert (by_head[::2] > 0).all()
    assert (by_head[1::2] == 0).all()


def test_the_penalty_wants_one_key_for_all_heads() -> None:
    """Each head has a key of its own: all hold enough mass, but of no key do both asked heads hold it."""
    model = dit(num_layers=1)
    attention: Any = model.get_submodule("transformer_blocks.0.attn1")
    query = torch.full((1, 16, 32), 10.0)
    key = torch.zeros(1, 16, 32)
    key[:, 3, :8] = key[:, 5, 16:24] = 10.0  # heads 0 and 2 look at the tokens 3 and 5
    with sink_penalty(model, target=0.5) as penalty:
        for layer, output in ((attention.to_q, query), (attention.to_k, key)):
            for hook in layer._forward_hooks.values():
                hook(layer, (), output)
        assert penalty().item() == pytest.approx(0.5 * 0.5**2)


def test_step_zero_sees_a_sink() -> None:
    """A head that always looks at one key: its bias makes all queries equal, and one key far better than the others."""
    model = dit(in_channels=1, sample_size=16)
    data = open_images("digits", split="test", channels=1, resolution=16)
    scheduler = DDIMScheduler()
    assert step_zero(model, scheduler, data, samples=4, buckets=2)["self"]["sink_heads"] < 1
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn1.to_k.weight.mul_(60)  # one key of a sample beats all others by far
            block.attn1.to_q.weight.zero_()
            block.attn1.to_q.bias.fill_(1.0)
    found = step_zero(model, scheduler, data, samples=4, buckets=2)
    assert found["self"]["heads"] == 12
    assert found["self"]["sink_heads"] == found["self"]["sink_heads_once"] == 1
    assert found["self"]["largest_r_of_sample"] <= 64
    assert "cross" not in found


@pytest.fixture
def start(tmp_path: Path) -> Path:
    folder = tmp_path / "start"
    dit(sample_size=16).save_pretrained(folder / "transformer")  # type: ignore[operator]
    DDIMScheduler().save_pretrained(folder / "scheduler")
    return folder


def arguments(out: Path, **more: Any) -> Namespace:
    common = {
        "steps": 2,
        "batch_size": 2,
        "lr": 1e-3,
        "warmup": 1,
        "ema": 0.9,
        "label_dropout": 0.5,
        "seed": 0,
    }
    return Namespace(out=out, device="cpu", checkpoint_every=1, **common, **more)


@pytest.mark.parametrize("twin", train_study.TWINS)
def test_a_twin_is_trained_written_and_loaded(twin: str, start: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train_study, "step_zero", lambda *args, **kwargs: {})
    args = arguments(
        tmp_path / "twins", start=start, data="digits", only=[twin], target=0.5, weight=1.0, energy=4.0
    )
    train_study.fine_tune(twin, args)
    folder = tmp_path / "twins" / twin
    written = json.loads((folder / "training.json").read_text())
    assert written["attention"] == (OFF_BY_ONE if twin == OFF_BY_ONE else "softmax")
    model: Any = load_twin(folder)
    processor = model.transformer_blocks[0].attn1.processor
    assert isinstance(processor, OffByOneProcessor) == (twin == OFF_BY_ONE)
    assert (folder / "scheduler" / "scheduler_config.json").is_file()


def test_every_word_of_a_caption_is_a_token(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    for label, name in enumerate(CLASSES):
        text = caption(label, row=label)
        assert name in text
        pieces = text.replace("-", " - ").replace(",", " ,").split()
        assert words.tokenize(text) == [f"{piece}</w>" for piece in pieces]
    assert caption(3, row=5) == caption(3, row=5)


def test_latents_are_pixels() -> None:
    vae = pixel_autoencoder()
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latents
        assert torch.equal(latents * vae.config.scaling_factor, images)
        torch.testing.assert_close(vae.decode(latents).sample, images, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text pipeline trained for two steps."""
    folder = tmp_path_factory.mktemp("text")
    digits = open_images("digits", split="train", channels=1, resolution=16)
    object.__setattr__(digits, "fetch_caption", lambda row: caption(digits.fetch_label(row), row))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_study, "images_for", lambda *args: digits)
        patch.setattr(train_study, "step_zero", lambda *args, **kwargs: {})
        train_study.train_text_unet(arguments(folder, data="digits"))
    return folder


def test_the_text_pipeline_is_loaded_conditioned_and_sampled(text_model: Path) -> None:
    model: Any = load_denoiser(text_model)
    pipeline = load_pipeline(text_model, denoiser=model)
    data = ImageData(
        "black",
        (1, 16, 16),
        2,
        lambda row: torch.zeros(1, 16, 16),
        None,
        ["a bag", "a photo of a boot"].__getitem__,
    )
    source = image_calls(model, None, data, pipeline=pipeline, call={"num_inference_steps": 2})
    text = next(iter(noised_images(source, timestep_buckets=1))).call["encoder_hidden_states"]
    assert torch.equal(source.latents([0, 1], 0), torch.zeros(2, 1, 16, 16))
    assert text.shape == (2, 77, 64)
    assert torch.equal(text[0, 0], text[1, 0])  # the first token is the same in every prompt
    assert not torch.allclose(text[0, 2], text[1, 2])
    asked = {"num_inference_steps": 2, "guidance_scale": 2.0}
    images = sample_pipeline(pipeline, [{"prompt": "a bag"}], sample_ids=[0], seed=0, arguments=asked)
    assert images.shape == (1, 1, 16, 16)


def test_a_bos_key_alone_gives_a_constant(tmp_path: Path) -> None:
    """docs/scores.md section 4: a cross-attention head that looks only at the first token says always the same."""
    pipeline: Any = text_pipeline(tmp_path, seed=0)
    attention: nn.Module = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    prompts = ["a bag", "", "a photo of a boot"]
    text = pipeline.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)[0]
    with torch.no_grad():
        found = attention(torch.randn(3, 16, 128), encoder_hidden_states=text[:, :1])
    torch.testing.assert_close(found, found[:1, :1].expand_as(found))
