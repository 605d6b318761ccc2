"""A whole run of a model that does not fit into memory: as the run of one that does, but for recovery by blocks."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from pruning.stages import Run, run_recipe
from tests.e2e.test_run import check_complete, features, save_bare, workplace, write_recipe
from tests.models import dit

__all__ = ["features", "workplace"]
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "streams", True)


def test_cut_from_disk_to_disk_is_the_cut_in_memory(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="recover", overrides=["name=whole", "recover.method=blocks"])
    streamed(monkeypatch)
    run_recipe(recipe, overrides=["name=streamed", "store=null", f"run_dir={workplace}/other"])
    check_complete(workplace / "other", 0.75)
    for stage in ("prune", "recover"):
        whole, ours = (load_file(workplace / run / stage / WEIGHTS) for run in ("runs/whole", "other"))
        assert whole.keys() == ours.keys()
        assert all(torch.equal(whole[name], ours[name]) for name in whole), stage
    said = json.loads((workplace / "other/recover/manifest.json").read_text())["result"]
    assert said["method"] == "blocks"
    assert 1 <= said["blocks_kept"] <= said["blocks"]
    assert said["error_after"] < said["error_before"]
