"""What a run's models are asked to sample: arguments, inputs, batches; a text-to-image and a sound model, run whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMScheduler, FluxPipeline
from safetensors.torch import load_file

from pruning.errors import PruningError
from pruning.recipe import Recipe
from pruning.sampling import PixelPipeline
from pruning.settings import Calibrate, Evaluate
from pruning.stages.dryrun import dry_run
from pruning.stages.preflight import preflight
from pruning.stages.run import Run
from pruning.stages.runner import run_recipe
from pruning.stages.sampling import arguments_of, labels_of, pipeline_around, prompts_of, sampler, steps_of
from tests.models import dit, unet2d
from tests.unit.test_stages_preflight import change
from tests.unit.tiny_pipelines import FLUX_CALL, ddpm, dit_latent, flux, latte, stable_diffusion

LINES = ("a cat", "a dog", "a red dog of a blue cat, a red cat", "a blue dog")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Return a recipe of a model at ``model``, without images: prompts, magnitudes, no training."""
    (tmp_path / "prompts.txt").write_text("\n".join(LINES))
    plain = Recipe(name="r", device="cpu", run_dir=str(tmp_path / "run"))
    target = dataclasses.replace(plain.prune.target, params=0.9)
    plain = change(plain, model__source=str(tmp_path / "model"), data__source=str(tmp_path / "prompts.txt"))
    plain = change(plain, prune__target=target, prune__compensation="none", score__criterion="magnitude")
    plain = change(
        plain, calibrate__provider="sampling", calibrate__num_samples=2, calibrate__diagnostics=False
    )
    plain = change(
        plain, recover__enabled=False, export__dtype="float32", evaluate__metrics=["consistency", "cost"]
    )
    plain = change(plain, calibrate__timestep_buckets=2)
    return change(plain, evaluate__num_samples=3, evaluate__batch_size=2, prune__kinds=["ffn_channels"])


def saved(pipeline: Any, folder: Path) -> Any:
    pipeline.save_pretrained(folder / "model")
    return pipeline


def test_the_sections_go_before_the_pipelines_arguments(recipe, tmp_path):
    saved(flux(tmp_path), tmp_path)
    run = Run(change(recipe, pipeline={"num_inference_steps": 9, "height": 16, "width": None}))
    assert run.pipeline_class is FluxPipeline
    assert arguments_of(run, Evaluate()) == {"num_inference_steps": 9, "height": 16}
    assert arguments_of(run, Evaluate(num_steps=5, guidance_scale=2.0)) == {
        "num_inference_steps": 5,
        "guidance_scale": 2.0,
        "height": 16,
    }
    assert arguments_of(run, Calibrate(num_steps=3))["num_inference_steps"] == 3
    assert steps_of(Run(recipe), Evaluate()) == 28, "what FluxPipeline takes by itself"


def test_without_a_pipeline_steps_and_guidance_are_those_of_our_loop(recipe, tmp_path):
    dit().save_pretrained(tmp_path / "model" / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    run = Run(change(recipe, data__source="digits"))
    assert run.pipeline_class is PixelPipeline
    assert (arguments_of(run, Evaluate()), steps_of(run, Evaluate())) == ({}, 20)
    found = sampler(run, run.dense, Evaluate())(range(3))
    twenty = sampler(run, run.dense, Evaluate(num_steps=20, guidance_scale=1.0))(range(3))
    assert torch.equal(found, twenty)


def test_a_loop_that_fits_one_scheduler_is_replaced_by_ours(recipe, tmp_path):
    saved(ddpm(), tmp_path)
    run = Run(change(recipe, data__source="none"))
    assert isinstance(pipeline_around(run, run.dense, "EulerDiscreteScheduler"), PixelPipeline)


@pytest.mark.parametrize(
    ("build", "values", "message"),
    [
        (
            flux,
            {"pipeline": {"heigth": 8}},
            r"^pipeline: heigth \(8\) is no argument of FluxPipeline \(did you mean",
        ),
        (
            flux,
            {"pipeline": {"prompt": "a"}},
            r"^pipeline: prompt \('a'\) cannot be given: it comes from data.source",
        ),
        (
            lambda _: ddpm(),
            {"pipeline": {"height": 8}},
            r"^pipeline: height \(8\) is no argument of PixelPipeline",
        ),
    ],
)
def test_a_dry_run_knows_the_arguments(recipe, tmp_path, build, values, message):
    saved(build(tmp_path), tmp_path)
    for check in (dry_run, lambda run: preflight(run, ["calibrate"])):
        with pytest.raises(PruningError, match=message):
            check(Run(change(recipe, **values)))


def test_a_number_that_the_pipeline_does_not_take_is_refused(recipe, tmp_path):
    unet = unet2d(in_channels=3, out_channels=3)
    saved(ConsistencyModelPipeline(unet=unet, scheduler=CMStochasticIterativeScheduler()), tmp_path)
    run = Run(change(recipe, data__source="none"))
    with pytest.raises(
        PruningError,
        match=r"^evaluate\.guidance_scale: 3\.0: ConsistencyModelPipeline takes no guidance_scale",
    ):
        arguments_of(run, Evaluate(guidance_scale=3.0))
    assert arguments_of(run, Evaluate(guidance_scale=1.0)) == {}, "1 is none"


def test_a_config_alone_says_nothing_of_the_arguments(recipe, tmp_path):
    pipeline = saved(stable_diffusion(tmp_path), tmp_path)
    pipeline.unet.save_config(tmp_path / "alone")
    run = Run(change(recipe, model__source=str(tmp_path / "alone" / "config.json"), pipeline={"height": 8}))
    assert dry_run(run)["plan"]


def test_inputs_are_prompts_in_turn_or_classes_in_turn_or_nothing(recipe, tmp_path):
    saved(flux(tmp_path), tmp_path)
    run = Run(recipe)
    assert [one["prompt"] for one in run.inputs("train", 4)] == [*LINES[:3], LINES[0]]
    assert run.inputs("train", 2, skip=2) == [{"prompt": LINES[2]}, {"prompt": LINES[0]}]
    assert run.inputs("test", 2) == [{"prompt": LINES[3]}] * 2
    assert prompts_of(run, "test", 1) == [LINES[3]]
    assert labels_of(run, range(3)) is None
    saved(dit_latent(), tmp_path / "classes")
    run = Run(change(recipe, model__source=str(tmp_path / "classes" / "model"), data__source="none"))
    assert run.inputs("train", 2, skip=999) == [{"class_labels": [999]}, {"class_labels": [0]}]
    assert labels_of(run, range(3)).tolist() == [0, 1, 2]
    saved(ddpm(), tmp_path / "plain")
    assert Run(change(recipe, model__source=str(tmp_path / "plain" / "model"))).inputs("train", 2) == [{}, {}]


def test_batches_are_tried_with_the_shortest_and_the_longest_prompt(recipe, tmp_path, monkeypatch):
    tried: list[Any] = []
    monkeypatch.setattr(
        "pruning.stages.sampling.batch_fault", lambda *a, **k: tried.append(a[1]) or "they do not get on"
    )
    calls: list[int] = []
    monkeypatch.setattr(
        "pruning.stages.sampling.sample_pipeline",
        lambda *a, batch_size, **k: calls.append(batch_size) or torch.empty(0),
    )
    saved(flux(tmp_path), tmp_path)
    run = Run(recipe)
    for model in (run.dense, run.load_dense()):
        sampler(run, model, Calibrate(num_samples=3, batch_size=2))(range(3))
    assert tried == [[{"prompt": LINES[0]}, {"prompt": LINES[2]}]], "once a run"
    assert calls == [1, 1]
    sampler(run, run.dense, Evaluate(batch_size=1))
    assert len(tried) == 1, "one sample a call needs no trial"


def test_the_slim_model_takes_the_place_of_the_dense_one_and_settings_stay(recipe, tmp_path):
    pipeline = saved(stable_diffusion(tmp_path), tmp_path)
    run, other = Run(recipe), stable_diffusion(tmp_path).unet
    around = pipeline_around(run, other)
    assert around.unet is other
    assert run.pipeline.unet is run.dense
    assert around.vae is run.pipeline.vae
    assert around.config["requires_safety_checker"] is pipeline.config["requires_safety_checker"] is False
    assert type(pipeline_around(run, other, "PNDMScheduler").scheduler).__name__ == "PNDMScheduler"


def test_a_denoiser_that_is_no_part_of_the_pipeline_is_refused(recipe, tmp_path):
    saved(stable_diffusion(tmp_path), tmp_path)
    (tmp_path / "model" / "unet").rename(tmp_path / "model" / "other")
    run = Run(change(recipe, model__subfolder="other"))
    run.pipeline = type("Odd", (), {"components": {"vae": 1}, "config": {}})()
    with pytest.raises(PruningError, match=r"model\.subfolder: 'other' is no part of Odd, which has vae"):
        pipeline_around(run, run.meta)


def test_a_text_to_image_model_of_no_known_family_runs_whole(recipe, tmp_path):
    saved(flux(tmp_path), tmp_path)
    latency = dataclasses.replace(recipe.evaluate.latency, batch_size=1, runs=1, sampling_runs=1)
    recipe = change(recipe, pipeline={**FLUX_CALL, "num_inference_steps": 2}, evaluate__latency=latency)
    run_recipe(change(recipe, evaluate__metrics=["consistency", "cost", "latency"]), progress=False)
    run = tmp_path / "run"
    kept = load_file(run / "evaluate" / "samples.safetensors")
    assert kept["dense"].shape == kept["pruned"].shape == (3, 3, 16, 24)
    assert json.loads((run / "evaluate" / "sample.json").read_text()) == {
        "medium": "image",
        "shape": [3, 16, 24],
    }
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    assert 0 < metrics["pruned"]["ssim"] < 1
    assert metrics["pruned"]["sampling"]["median_s"] > 0
    assert LINES[3] in (run / "report" / "report.html").read_text()
    [card] = (run / "export").glob("**/README.md")
    assert "2 steps, guidance 3.5, height 16, width 24, max_sequence_length 24" in card.read_text()


def test_a_model_of_videos_is_judged_by_their_frames(recipe, tmp_path):
    saved(latte(), tmp_path)
    arguments = {"height": 8, "width": 8, "video_length": 3, "clean_caption": False, "num_inference_steps": 2}
    recipe = change(recipe, pipeline=arguments, evaluate__num_samples=2)
    run_recipe(recipe, progress=False)
    run = tmp_path / "run"
    assert load_file(run / "evaluate" / "samples.safetensors")["dense"].shape == (2, 3, 8, 3 * 8 + 2)
    assert json.loads((run / "evaluate" / "sample.json").read_text()) == {
        "medium": "video",
        "shape": [3, 3, 8, 8],
    }
    assert "Each is 3 of the 3 frames of a video" in (run / "report" / "report.html").read_text()


def test_metrics_that_need_images_are_refused_where_there_are_none(recipe, tmp_path):
    saved(latte(), tmp_path)
    with pytest.raises(PruningError, match="images are asked for, and it is text"):
        preflight(Run(change(recipe, evaluate__metrics=["fid"])), ["calibrate", "evaluate"])


def test_distances_of_images_are_refused_for_videos_before_the_work(recipe, tmp_path, monkeypatch):
    """The data have images, the model makes videos: seen in the rehearsal."""
    saved(latte(), tmp_path)
    monkeypatch.setattr("pruning.stages.preflight.check_data", lambda *a: None)
    monkeypatch.setattr("pruning.stages.preflight.check_features", lambda *a: None)
    monkeypatch.setattr("pruning.stages.preflight.image_splits", lambda *a: (False, False))
    arguments = {"height": 8, "width": 8, "video_length": 3, "clean_caption": False}
    message = r"stage 'evaluate' would stop at this: evaluate\.metrics: the metric 'kid' judges images, and the model"
    asked = change(recipe, pipeline=arguments, evaluate__metrics=["kid"], evaluate__num_samples=4)
    with pytest.raises(PruningError, match=message):
        preflight(Run(asked), ["calibrate", "evaluate"])


def test_what_the_pipeline_itself_refuses_is_said_before_the_work(recipe, tmp_path):
    saved(flux(tmp_path), tmp_path)
    asked = change(recipe, pipeline={**FLUX_CALL, "max_sequence_length": 1000})
    message = "stage 'evaluate' would stop at this: FluxPipeline fails with .*'max_sequence_length': 1000.*ValueError"
    with pytest.raises(PruningError, match=message):
        preflight(Run(asked), ["calibrate", "evaluate"])


def test_room_for_the_samples_is_seen_in_the_rehearsal(recipe, tmp_path, monkeypatch):
    saved(flux(tmp_path), tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(
        "pruning.stages.room.check_writable", lambda what, where, needed: asked.append(needed)
    )
    preflight(Run(change(recipe, pipeline=FLUX_CALL)), ["calibrate", "evaluate"])
    assert asked[-1] == (3 + 1) * 3 * 3 * 16 * 24  # of three models, one of them twice


def test_a_bare_denoiser_of_no_known_family_cannot_sample(recipe, tmp_path):
    flux(tmp_path).transformer.save_pretrained(tmp_path / "model" / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    run = Run(recipe)
    with pytest.raises(
        PruningError, match="is a bare FluxTransformer2DModel, and how it samples is not known; give"
    ):
        pipeline_around(run, run.dense)


def test_latents_are_not_noised_where_nothing_reads_them(recipe, tmp_path, monkeypatch):
    for module in ("showing", "smaller_forms"):
        monkeypatch.setattr(f"pruning.stages.{module}.noised", lambda *a, **k: pytest.fail("noised"))
    saved(flux(tmp_path), tmp_path)
    recipe = change(recipe, pipeline={**FLUX_CALL, "num_inference_steps": 2})
    assert run_recipe(recipe, until="evaluate", progress=False)["params_ratio"] < 1
