"""Images within recorded calls: buckets, seeds, batch sizes, classes, prompts, and steps that are made of the first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pruning.data import ImageData, open_images, sample_generator
from pruning.errors import PruningError
from pruning.interface import image_calls
from pruning.models import denoise
from pruning.recording import record, recorded_batches
from pruning.recording.decoding import encoded
from pruning.recording.images import ImageCalls, noised_images
from pruning.recording.templates import template_branches
from pruning.recovery.batches import Share
from pruning.recovery.recorded import ImageSource
from pruning.settings import Recover
from tests.models import dit, unet2d, unet2d_condition
from tests.pipelines import PIPELINES
from tests.unit.tiny_pipelines import dit_latent, stable_diffusion, stable_diffusion_xl, vae

DIGITS = open_images("digits", split="test", channels=1, resolution=8)
IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
COLOURED = ImageData(
    "made up",
    (3, 16, 16),
    3,
    fetch=lambda i: IMAGES[i],
    fetch_label=lambda i: i,
    fetch_caption=lambda i: ["a cat", "a red dog", ""][i],
    class_names=dict(enumerate("abc")),
)


@pytest.fixture(scope="module")
def digits() -> Callable[..., ImageCalls]:
    found: dict[str, ImageCalls] = {}

    def make(scheduler: Any = None) -> ImageCalls:
        scheduler = scheduler or DDIMScheduler()
        key = repr((type(scheduler).__name__, dict(scheduler.config)))
        if key not in found:
            found[key] = image_calls(dit(), scheduler, DIGITS)
        return found[key]

    return make


def batches(source: ImageCalls, **changes: Any) -> Any:
    return noised_images(
        source, **{"images": [4, 1, 30], "batch_size": 2, "timestep_buckets": 3, "seed": 5, **changes}
    )


def test_every_chunk_goes_through_every_bucket(digits):
    found = batches(digits())
    seen = [(batch.bucket, batch.sample_ids.tolist()) for batch in found]
    assert seen == [(0, [4, 1]), (1, [4, 1]), (2, [4, 1]), (0, [30]), (1, [30]), (2, [30])]
    assert found.rows == sum(len(batch.sample_ids) for batch in found)
    assert batches(digits(), device="meta").device == torch.device("meta")


def test_batches_can_be_gone_through_again(digits):
    found = batches(digits())
    for a, b in zip(found, found, strict=True):
        assert torch.equal(a.target, b.target)
        assert all(torch.equal(value, b.call[name]) for name, value in a.call.items())


def test_call_and_target(digits):
    batch = next(iter(batches(digits())))
    assert set(batch.call) == {"hidden_states", "timestep", "class_labels"}
    assert torch.equal(batch.call["class_labels"], DIGITS.labels([4, 1]))
    assert torch.equal(batch.call["timestep"], batch.timesteps.long())
    assert batch.target.shape == batch.call["hidden_states"].shape == (2, 1, 8, 8)
    abar = DDIMScheduler().alphas_cumprod[batch.timesteps.long()][:, None, None, None]
    clean = (batch.call["hidden_states"] - (1 - abar).sqrt() * batch.target) / abar.sqrt()
    torch.testing.assert_close(clean, DIGITS.images([4, 1]), atol=1e-4, rtol=0)


def test_without_a_class_all_get_the_one_for_none(digits):
    for batch in batches(digits(), conditional=False):
        assert batch.call["class_labels"].tolist() == [10] * len(batch.sample_ids)
    source = image_calls(unet2d(), DDIMScheduler(), DIGITS, images=2)
    with pytest.raises(PruningError, match="the model knows no call without a class or prompt"):
        noised_images(source, conditional=False)


def test_an_image_has_the_same_noise_in_every_bucket_and_its_timestep_in_the_bucket(digits):
    first = list(batches(digits()))[:3]
    for batch in first:
        # epsilon: the target is the noise
        torch.testing.assert_close(batch.target, first[0].target, atol=1e-4, rtol=0)
        assert (batch.timesteps * 3 // 1000).tolist() == [batch.bucket] * 2
    assert not torch.equal(first[0].call["hidden_states"], first[1].call["hidden_states"])


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(prediction_type="v_prediction"), FlowMatchEulerDiscreteScheduler()]
)
def test_nothing_depends_on_the_batch_size_or_the_order(digits, scheduler):
    def by_image(**changes: Any) -> dict[tuple[int, int], Any]:
        return {
            (int(i), batch.bucket): (batch.call["hidden_states"][k], batch.target[k], batch.timesteps[k])
            for batch in batches(digits(scheduler), **changes)
            for k, i in enumerate(batch.sample_ids)
        }

    one, other = by_image(), by_image(batch_size=1, images=[30, 4, 1])
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert all(torch.equal(a, b) for a, b in zip(values, other[key], strict=True))


def test_another_seed_gives_other_noise(digits):
    one, other = (next(iter(batches(digits(), seed=seed))) for seed in (5, 6))
    assert not torch.equal(one.target, other.target)


def test_calls_take_the_asked_dtype(digits):
    batch = next(iter(batches(digits(), dtype=torch.bfloat16)))
    assert batch.call["hidden_states"].dtype == torch.bfloat16
    assert batch.call["class_labels"].dtype == torch.int64
    assert batch.target.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"timestep_buckets": 0}, "timestep_buckets 0: must be 1 to 100"),
        ({"timestep_buckets": 101}, "timestep_buckets 101: must be 1 to 100"),
        ({"images": []}, "no images asked"),
    ],
)
def test_bad_requests_fail_before_the_first_batch(digits, changes: dict[str, Any], message: str):
    with pytest.raises(PruningError, match=message):
        batches(digits(), **changes)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (dit, {"images": 360}, "360 images asked, but the split holds 359"),
        (dit, {"images": []}, "no image asked"),
        (
            dit,
            {"data": ImageData("plain", (1, 8, 8), 3, DIGITS.fetch)},
            "has 10 classes, but plain has no labels: give label_column",
        ),
        (
            lambda: dit(num_embeds_ada_norm=3),
            {"images": 2},
            r"digits\[test\] has 10 classes; DiTTransformer2DModel has 3",
        ),
        (unet2d_condition, {"images": 2}, "conditioned on text, but a bare denoiser cannot encode prompts"),
        (
            lambda: unet2d(class_embed_type="timestep"),
            {"images": 2},
            "class_embed_type 'timestep': data give no such condition",
        ),
        (lambda: torch.nn.Linear(2, 2), {"images": 2}, "denoiser class 'Linear' is not known"),
    ],
)
def test_data_that_do_not_fit(model: Callable[[], Any], changes: dict[str, Any], message: str):
    how = {"data": DIGITS, **changes}
    with pytest.raises(PruningError, match=message):
        image_calls(model(), DDIMScheduler(), how.pop("data"), **how)


def test_the_model_must_be_the_pipelines_own():
    with pytest.raises(PruningError, match="DiTPipeline holds another DiTTransformer2DModel"):
        image_calls(dit(), None, COLOURED, pipeline=dit_latent())


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl, lambda folder: dit_latent()])
def test_latent_models_are_asked_as_their_pipeline_asks(build: Callable[[Path], Any], tmp_path: Path):
    pipeline = build(tmp_path)
    model = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    source = image_calls(model, None, COLOURED, pipeline=pipeline, call={"num_inference_steps": 7})

    def run(batch_size: int) -> dict[tuple[int, int], Any]:
        found = {}
        for batch in noised_images(source, batch_size=batch_size, timestep_buckets=2, seed=3):
            with torch.no_grad():
                out = denoise(model, batch.call)
            assert out.shape == batch.target.shape == (len(batch.sample_ids), 4, 8, 8)
            found |= {(int(i), batch.bucket): (out[k], batch.call) for k, i in enumerate(batch.sample_ids)}
        return found

    whole, single = run(3), run(1)
    assert len(whole) == 6, "of guidance the branch with the class or the prompt alone"
    for key, (value, _) in whole.items():
        torch.testing.assert_close(single[key][0], value, atol=1e-4, rtol=1e-4)
    for image, text in enumerate(["a cat", "a red dog", ""]):
        call = single[image, 1][1]
        if "class_labels" in call:
            assert call["class_labels"].tolist() == [image]
            continue
        with torch.no_grad():
            found = pipeline.encode_prompt(
                prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        torch.testing.assert_close(call["encoder_hidden_states"], found[0])
        if added := call.get("added_cond_kwargs"):
            torch.testing.assert_close(added["text_embeds"], found[2])


def test_data_without_captions_give_the_empty_prompt_and_one_warning(tmp_path: Path, caplog):
    pipeline = stable_diffusion(tmp_path)
    data = ImageData("plain", (3, 16, 16), 3, COLOURED.fetch)
    with caplog.at_level(logging.WARNING):
        source = image_calls(pipeline.unet, None, data, pipeline=pipeline, call={"num_inference_steps": 3})
        list(noised_images(source, timestep_buckets=2))
    assert [r.message for r in caplog.records if "captions" in r.message] == [
        "plain has no captions: the empty prompt goes with every image"
    ]


def test_latents_are_drawn_by_image_and_as_the_pipeline_scales_them(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    source = image_calls(pipeline.unet, None, COLOURED, pipeline=pipeline, call={"num_inference_steps": 3})
    with torch.no_grad():
        posterior = pipeline.vae.encode(IMAGES[:1]).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=sample_generator(0, 7))
        expected = (posterior.mean + posterior.std * noise) * pipeline.vae.config.scaling_factor
    draws = [sample_generator(0, 7), sample_generator(0, 8)]
    torch.testing.assert_close(source.encode(IMAGES[:2], draws)[:1], expected)
    with pytest.raises(PruningError, match=r"images of 8 x 8 pixels become .* but StableDiffusionPipeline"):
        source.encode(IMAGES[:1, :, :8, :8], draws[:1])


def test_a_float16_autoencoder_that_overflows_is_run_in_float32(monkeypatch: pytest.MonkeyPatch):
    model = vae().to(torch.float16)
    model.register_to_config(force_upcast=True)
    seen, plain = [], model.encode
    monkeypatch.setattr(model, "encode", lambda x: seen.append(x.dtype) or plain(x))
    latents = encoded(model, IMAGES[:1], [sample_generator(0, 0)])
    assert (seen, latents.dtype) == ([torch.float32], torch.float32)
    assert next(model.parameters()).dtype == torch.float16


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "dit", "z-image", "pixart-sigma"])
def test_later_steps_made_of_the_first_are_those_that_the_pipeline_asks(name: str, tmp_path: Path):
    tiny = PIPELINES[name]
    pipeline = tiny.build()
    short = record(pipeline, tiny.inputs, tmp_path / "short", call=tiny.call, for_images=True)
    whole = record(pipeline, tiny.inputs, tmp_path / "whole", call=tiny.call, points=None)
    assert short.head.branches is not None
    assert {row.step for row in short.rows if row.sample} == {0}
    (denoiser,) = short.denoisers
    source = ImageCalls(short, denoiser, name, [], lambda i: IMAGES, lambda x, g: x, lambda i: i)
    for row in whole.rows:
        if (row.call, row.branch) not in short.head.branches:
            continue
        made = {(r.call, r.branch): (r, tree) for r, tree in source.rows(row.sample, row.step)}
        found, tree = made[row.call, row.branch]
        wanted = whole.arguments(row)
        for place in row.places:
            tree, wanted = place.cleared(tree), place.cleared(wanted)
        assert (found.t, found.levels) == (row.t, row.levels)
        assert [place.path for place in found.places] == [place.path for place in row.places]
        scales = ([place.scale for place in r.places] for r in (found, row))
        assert next(scales) == pytest.approx(next(scales), rel=1e-6)
        torch.testing.assert_close(tree, wanted, rtol=0, atol=0)


def test_where_later_steps_do_not_follow_all_are_recorded(digits):
    source = digits()
    rows = [row for row in source.calls.rows if not row.sample]
    others = list(rows)
    assert template_branches(rows, others) == [(0, 0)]
    others[-1] = next(row for row in rows if row.step == 0)  # other arguments at the last step
    assert template_branches(rows, others) is None


def test_what_was_recorded_for_images_has_no_latents_of_its_own(digits):
    with pytest.raises(PruningError, match="it was recorded for images, so that its latents say nothing"):
        recorded_batches(digits().calls)


def test_a_micro_batch_is_full_where_prompts_differ_in_length():
    tiny = PIPELINES["qwen-image"]
    pipeline, shape = tiny.build(), (3, tiny.call["height"], tiny.call["width"])
    texts = ["a dog", "a dog", "a red dog that runs", "a dog"]
    data = ImageData("lengths", shape, 4, lambda i: torch.full(shape, i / 4), None, texts.__getitem__)
    source = image_calls(pipeline.transformer, None, data, pipeline=pipeline, call=tiny.call)
    share = Share(Recover(batch_size=4, label_dropout=0.0), 0, torch.device("cpu"))
    for batch in ImageSource(source, share).batches(0, 3):
        assert len(batch.sample_ids) == len(batch.call["hidden_states"]) == 4
        lengths = {len(texts[i].split()) for i in batch.sample_ids.tolist()}
        assert len(lengths) == 1
        assert batch.target is not None
        assert len({tuple(target.flatten().tolist()) for target in batch.target}) == 4
