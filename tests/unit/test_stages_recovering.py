"""What the slim model makes while it is trained: a text-to-image model in half precision, and one of pixels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from pruning.recipe import Recipe
from pruning.stages.runner import run_recipe
from tests.models import dit
from tests.unit.test_stages_preflight import change
from tests.unit.test_stages_sampling import recipe as recipe
from tests.unit.test_stages_sampling import saved
from tests.unit.tiny_pipelines import FLUX_CALL, flux

TRAINED = {
    "recover__enabled": True,
    "recover__steps": 4,
    "recover__batch_size": 2,
    "recover__num_samples": 4,
    "recover__eval_every": 2,
    "recover__held_out": 1,
    "recover__validation_images": 2,
    "recover__learning_rate": 1e-2,
    "recover__ema_decay": 0.0,
}


@pytest.mark.parametrize("train", ["all", "lora"])
def test_validation_images_of_a_pipeline_in_half_precision(recipe: Recipe, tmp_path: Path, train: str):
    saved(flux(tmp_path).to(torch.bfloat16), tmp_path)
    latency = dataclasses.replace(recipe.evaluate.latency, batch_size=1, runs=1, sampling_runs=1)
    recipe = change(recipe, pipeline={**FLUX_CALL, "num_inference_steps": 2}, evaluate__latency=latency)
    recipe = change(
        recipe, model__dtype="bfloat16", recover__train=train, recover__feature_weight=0.1, **TRAINED
    )
    run_recipe(recipe, progress=False)
    run = tmp_path / "run"
    losses = json.loads((run / "recover" / "losses.json").read_text())
    assert losses["held_out"]["steps"] == [0, 2, 4]
    shown = load_file(run / "recover" / "validation.safetensors")
    assert shown["steps"].tolist() == [0, 2, 4]
    samples = load_file(run / "evaluate" / "samples.safetensors")
    assert shown["pictures"].shape == (3, 2, *samples["dense"].shape[1:])
    near = (shown["pictures"].float() - samples["pruned"][:2].float()).abs().mean((1, 2, 3, 4))
    after = (shown["pictures"].float() - samples["recovered"][:2].float()).abs().mean((1, 2, 3, 4))
    assert near.argmin() == 0  # of the same noise: only types differ
    assert after.argmin() == 2
    page = (run / "report" / "report.html").read_text()
    assert "as it was cut" in page
    assert "step 4" in page
    assert "at the bottom the dense model" in page


def test_a_model_of_pixels_shows_the_samples_of_the_evaluation(recipe: Recipe, tmp_path: Path):
    dit().save_pretrained(tmp_path / "model" / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    recipe = change(recipe, data__source="digits", data__resolution=8, calibrate__provider="noised")
    recipe = change(recipe, evaluate__num_steps=2, recover__early_stop=1, **TRAINED)
    run_recipe(recipe, until="evaluate", progress=False)
    shown = load_file(tmp_path / "run" / "recover" / "validation.safetensors")
    samples = load_file(tmp_path / "run" / "evaluate" / "samples.safetensors")
    losses = json.loads((tmp_path / "run" / "recover" / "losses.json").read_text())
    assert torch.equal(shown["pictures"][0], samples["pruned"][:2])
    best = shown["steps"].tolist().index(losses["best_step"])
    assert torch.equal(shown["pictures"][best], samples["recovered"][:2])
