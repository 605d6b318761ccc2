"""A whole run of a model that does not fit into memory: as the run of one that does, but for recovery by blocks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from pruning.stages import run_recipe
from pruning.stages.placement import Placement
from tests.e2e.test_run import captioned, check_complete, features, save_bare, workplace, write_recipe
from tests.models import dit
from tests.unit.tiny_pipelines import stable_diffusion

__all__ = ["captioned", "features", "workplace"]
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_whose_weights_stay_in_their_files(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="recover", overrides=["name=whole", "recover.method=blocks"])
    monkeypatch.setattr(Placement, "streams", True)
    run_recipe(recipe, overrides=["name=streamed", "store=null", f"run_dir={workplace}/other"])
    check_complete(workplace / "other", 0.75)
    for stage in ("prune", "recover"):
        assert_same_weights(workplace / "runs/whole" / stage, workplace / "other" / stage)
    said = json.loads((workplace / "other/recover/manifest.json").read_text())["result"]
    assert said["method"] == "blocks"
    assert 1 <= said["blocks_kept"] <= said["blocks"]
    assert said["error_after"] < said["error_before"]


def test_a_pipeline_whose_weights_are_stored_in_another_type(workplace, features, captioned, monkeypatch):
    """They are converted once, from file to file."""
    stable_diffusion(workplace).save_pretrained(workplace / "model")
    recipe = write_recipe(workplace, features[3], data=captioned, macs=0.8)
    asked = ["model.dtype=bfloat16", "calibrate.provider=sampling", "calibrate.num_steps=3"]
    run_recipe(recipe, until="prune", overrides=["name=whole", *asked])
    monkeypatch.setattr(Placement, "streams", True)
    run_recipe(recipe, until="prune", overrides=[*asked, "store=null", f"run_dir={workplace}/other"])
    assert_same_weights(workplace / "runs/whole/prune", workplace / "other/prune")
    assert len([*workplace.rglob("converted/*/DONE")]) == 1
