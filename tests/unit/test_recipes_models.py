"""The recipes of real models: dry runs on the real architectures, whole runs on tiny pipelines of the same class."""

from __future__ import annotations

import json

import pytest

from pruning.cli import main
from pruning.recipe import bundled_recipes, load_recipe
from pruning.stages import Run
from pruning.stages.dryrun import dry_run
from tests.recipes import REAL, made_small, write_folder

IN_SHORT = ("sd35-medium", "stable-audio-open")
"""Recipes that the ordinary tests run whole; scripts/check_recipes.py runs all of them."""


def test_every_recipe_of_prompts_is_proven():
    of_prompts = {name for name in bundled_recipes() if load_recipe(name).data.source.endswith(".txt")}
    assert of_prompts == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_dry_run_on_the_real_architecture_hits_the_target(tmp_path, name):
    real = REAL[name]
    if real.denoiser is None:
        pytest.skip(
            f"the configuration {real.config} is not here; set SINKPRUNE_SHARED to the folder of configs/"
        )
    write_folder(real, tmp_path / "model")
    recipe = load_recipe(name, [f"model.source={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}"])
    found = dry_run(Run(recipe, progress=False))
    asked = recipe.prune.target.macs
    assert asked is not None
    assert found["class"] == real.denoiser["_class_name"]
    assert found["plan"]["hit"]
    assert found["plan"]["macs_ratio"] == pytest.approx(asked, abs=0.01)


@pytest.mark.parametrize("name", IN_SHORT)
def test_a_whole_run_on_a_tiny_pipeline_of_the_same_class(tmp_path, name):
    small = made_small(REAL[name], tmp_path / "model")
    assert main(["run", name, *small, f"run_dir={tmp_path / 'run'}"]) == 0
    metrics = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text("utf-8"))
    assert metrics["recovered"]["macs"] < metrics["dense"]["macs"]
    assert metrics["pruned"]["excess_error"] > 0
    assert (tmp_path / "run" / "report" / "report.html").is_file()
