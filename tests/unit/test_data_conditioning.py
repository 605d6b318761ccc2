"""Data -> the inputs of every family, through tiny pipelines built here."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from pruning.data import Conditioner, ImageData, noised_batches, sample_generator
from pruning.data.conditioning import encode_latents
from pruning.errors import PruningError
from pruning.models import denoise
from tests.models import dit, unet2d, unet2d_condition
from tests.unit.tiny_pipelines import dit_latent, stable_diffusion, stable_diffusion_xl, vae

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
DATA = ImageData(
    "made up",
    (3, 16, 16),
    3,
    fetch=lambda i: IMAGES[i],
    fetch_label=lambda i: i,
    fetch_caption=lambda i: ["a cat", "a red dog", ""][i],
    class_names=dict(enumerate("abc")),
)


def generators(*indices: int) -> list[torch.Generator]:
    return [sample_generator(0, i) for i in indices]


def test_pixels_and_labels_pass_through():
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([3, 9])
    x0, call = Conditioner(dit())(images, labels, None, generators(0, 1))
    assert x0 is images
    assert torch.equal(call["class_labels"], labels)
    x0, call = Conditioner(unet2d())(images, labels, ["text"] * 2, generators(0, 1))
    assert call == {}, "an unconditional model is given nothing"


def test_latents_are_the_posterior_scaled_and_seeded_by_sample():
    model = vae()
    with torch.no_grad():
        posterior = model.encode(IMAGES[:1]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=sample_generator(0, 7))
        expected = (posterior.mean + posterior.std * noise) * model.config.scaling_factor
    torch.testing.assert_close(encode_latents(model, IMAGES[:1], generators(7)), expected)
    both = encode_latents(model, IMAGES[:2], generators(7, 8))
    torch.testing.assert_close(both[:1], expected)


def test_latents_are_centred_where_the_autoencoder_says_how():
    model = vae()
    plain = encode_latents(model, IMAGES[:1], generators(7))
    scale = model.config.scaling_factor
    model.register_to_config(shift_factor=0.5)
    torch.testing.assert_close(encode_latents(model, IMAGES[:1], generators(7)), plain - 0.5 * scale)
    model.register_to_config(latents_mean=[1.0, 0, 0, 0], latents_std=[1.0, 2, 1, 1])
    found = encode_latents(model, IMAGES[:1], generators(7))
    torch.testing.assert_close(found[:, 0], plain[:, 0] - scale)
    torch.testing.assert_close(found[:, 1], plain[:, 1] / 2)


def test_a_float16_autoencoder_that_overflows_is_run_in_float32(monkeypatch: pytest.MonkeyPatch):
    model = vae().to(torch.float16)
    model.register_to_config(force_upcast=True)
    seen = []
    plain = model.encode
    monkeypatch.setattr(model, "encode", lambda x: seen.append(x.dtype) or plain(x))
    latents = encode_latents(model, IMAGES[:1], generators(0))
    assert seen == [torch.float32]
    assert latents.dtype == torch.float32
    assert next(model.parameters()).dtype == torch.float16


def test_stable_diffusion(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    x0, call = Conditioner(pipeline.unet, pipeline)(IMAGES[:2], None, ["a cat", "a dog"], generators(0, 1))
    assert x0.shape == (2, 4, 8, 8)
    assert set(call) == {"encoder_hidden_states"}
    assert call["encoder_hidden_states"].shape == (2, 77, 24)
    assert not call["encoder_hidden_states"].requires_grad
    tokens = pipeline.tokenizer(["a dog"], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = pipeline.text_encoder(tokens.input_ids)[0]
    torch.testing.assert_close(call["encoder_hidden_states"][1:], expected)


def test_stable_diffusion_xl(tmp_path: Path):
    pipeline = stable_diffusion_xl(tmp_path)
    _, call = Conditioner(pipeline.unet, pipeline)(IMAGES[:2], None, ["a cat", "a dog"], generators(0, 1))
    assert call["encoder_hidden_states"].shape == (2, 77, 48)
    added = call["added_cond_kwargs"]
    assert added["text_embeds"].shape == (2, 16)
    assert added["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl, lambda folder: dit_latent()])
def test_noised_batches_run_through_the_denoiser_and_do_not_depend_on_the_batch_size(build, tmp_path: Path):
    pipeline = build(tmp_path)
    model = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet

    def run(batch_size: int) -> dict[tuple[int, int], torch.Tensor]:
        found = {}
        for batch in noised_batches(
            DATA,
            Conditioner(model, pipeline),
            pipeline.scheduler,
            indices=range(3),
            batch_size=batch_size,
            timestep_buckets=2,
            seed=3,
        ):
            with torch.no_grad():
                out = denoise(model, batch.call)
            assert out.shape == batch.target.shape == (len(batch.sample_ids), 4, 8, 8)
            found |= {(int(i), batch.bucket): out[k] for k, i in enumerate(batch.sample_ids)}
        return found

    whole, single = run(3), run(1)
    assert len(whole) == 6
    for key, value in whole.items():
        torch.testing.assert_close(single[key], value, atol=1e-4, rtol=1e-4)


def test_data_without_captions_give_the_empty_prompt_and_one_warning(tmp_path: Path, caplog):
    pipeline = stable_diffusion(tmp_path)
    encode = Conditioner(pipeline.unet, pipeline)
    with caplog.at_level(logging.WARNING):
        _, call = encode(IMAGES[:1], None, None, generators(0))
        encode(IMAGES[:1], None, None, generators(0))
    _, empty = encode(IMAGES[:1], None, [""], generators(0))
    assert torch.equal(call["encoder_hidden_states"], empty["encoder_hidden_states"])
    assert [r.message for r in caplog.records if "captions" in r.message] == [
        "the data have no captions: the empty prompt conditions every image"
    ]


@pytest.mark.parametrize(
    ("build", "images", "labels", "message"),
    [
        (
            dit,
            torch.zeros(2, 1, 8, 8),
            None,
            "has 10 classes, but the data have no labels: give label_column",
        ),
        (dit, torch.zeros(2, 1, 8, 8), [0, 10], "labels go from 0 to 10; DiTTransformer2DModel has 0 to 9"),
        (dit, torch.zeros(2, 3, 8, 8), [0, 1], "takes 1 channels, but the data give images of 3 channels"),
        (
            lambda: unet2d(class_embed_type="timestep"),
            torch.zeros(2, 1, 8, 8),
            [0, 1],
            "class_embed_type 'timestep': data give no such condition",
        ),
    ],
)
def test_data_that_do_not_fit(build, images: torch.Tensor, labels: list[int] | None, message: str):
    given = None if labels is None else torch.tensor(labels)
    with pytest.raises(PruningError, match=message):
        Conditioner(build())(images, given, None, generators(0, 1))


def test_latents_that_do_not_fit(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    inpainting = unet2d_condition(in_channels=9)
    with pytest.raises(
        PruningError, match="takes 9 channels, but the data give latents of 4 channels; this denoiser"
    ):
        Conditioner(inpainting, pipeline)(IMAGES[:1], None, ["a"], generators(0))


def test_text_needs_a_pipeline():
    with pytest.raises(PruningError, match="conditioned on text, but a bare denoiser cannot encode prompts"):
        Conditioner(unet2d_condition())
    with pytest.raises(PruningError, match="conditioned on text, but DiTPipeline cannot encode prompts"):
        Conditioner(unet2d_condition(), dit_latent())


def test_image_conditions_are_refused(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    model = unet2d_condition(encoder_hid_dim=24, encoder_hid_dim_type="image_proj")
    with pytest.raises(PruningError, match="also takes images, which noised data do not give"):
        Conditioner(model, pipeline)(IMAGES[:1], None, ["a"], generators(0))


def test_other_size_conditions_are_refused(tmp_path: Path):
    pipeline = stable_diffusion_xl(tmp_path)
    model = unet2d_condition(
        cross_attention_dim=48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 5 * 8,
    )
    with pytest.raises(PruningError, match="the UNet takes 5 size conditions; known are 6"):
        Conditioner(model, pipeline)(IMAGES[:1], None, ["a"], generators(0))


def test_unknown_denoiser():
    with pytest.raises(PruningError, match="denoiser class 'Linear' is not known"):
        Conditioner(torch.nn.Linear(2, 2))
