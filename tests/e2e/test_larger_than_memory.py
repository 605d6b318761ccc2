"""A whole run of a model that does not fit into memory: as the run of one that does, but for recovery by blocks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from pruning.calibration.calibrator import Calibrator
from pruning.calibration.store import StatsFolder
from pruning.errors import PruningError
from pruning.importance import base
from pruning.recipe import load_recipe
from pruning.stages import Run, run_recipe
from pruning.stages.folder import RunFolder
from pruning.stages.placement import Placement
from pruning.stages.preflight import preflight
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


@pytest.mark.parametrize("method", ["whole", "blocks"])
def test_equal_runs_in_two_stores_give_equal_files(workplace, features, method):
    """So that what is known of one model is known of the other, wherever they lie."""
    save_bare(dit(sample_size=16), workplace)
    recipe, results = write_recipe(workplace, features[1]), []
    for name in ("one", "other"):
        source, run = workplace / name / "dense", workplace / name / "run"
        shutil.copytree(workplace / "model", source)
        asked = [f"model.source={source}", f"recover.method={method}", "store=null", f"run_dir={run}"]
        run_recipe(recipe, until="recover", overrides=asked)
        results.append({stage: RunFolder(run).whole(stage) for stage in ("prune", "recover")})
    for stage, result in results[0].items():
        files, others = (found.manifest["artefacts"] for found in (result, results[1][stage]))
        assert {name: file["sha256"] for name, file in files.items()} == {
            name: file["sha256"] for name, file in others.items()
        }
        assert "model/config.json" in files


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
    uses = [name for names in RunFolder(workplace / "other").uses().values() for name in names]
    assert any(name.startswith("converted/") for name in uses), "cleaning would remove what the run uses"


def test_weights_that_are_stored_in_a_narrower_type(workplace, features, monkeypatch):
    """They take the run's type while they are read: nothing is converted, and the result is that of a run in memory.

    A few may be stored in the run's type itself.
    """
    model = dit(sample_size=16).to(torch.bfloat16)
    for name, weight in dit(sample_size=16).named_parameters():
        if name.endswith("bias"):
            model.get_parameter(name).data = weight.data
    save_bare(model, workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="recover", overrides=["name=whole", "recover.method=blocks"])
    monkeypatch.setattr(Placement, "streams", True)
    run_recipe(recipe, overrides=["name=streamed", "store=null", f"run_dir={workplace}/other"])
    for stage in ("prune", "recover"):
        assert_same_weights(workplace / "runs/whole" / stage, workplace / "other" / stage)
    assert not [*workplace.rglob("converted")]


def test_weights_of_a_narrower_type_that_are_changed_block_by_block(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16).to(torch.bfloat16), workplace)
    recipe, asked = write_recipe(workplace, features[1]), ["prune.selection=block_by_block"]
    run_recipe(recipe, until="prune", overrides=["name=whole", *asked])
    monkeypatch.setattr(Placement, "streams", True)
    run_recipe(recipe, until="prune", overrides=[*asked, "store=null", f"run_dir={workplace}/other"])
    assert_same_weights(workplace / "runs/whole/prune", workplace / "other/prune")


def test_a_plan_that_only_removes_blocks(workplace, features, monkeypatch, caplog):
    """No block that is left can be trained by itself: that is said, and the model stays as it was cut."""
    save_bare(dit(sample_size=16, num_layers=4), workplace)
    recipe = write_recipe(workplace, features[1], macs=0.7)
    monkeypatch.setattr(Placement, "streams", True)
    run_recipe(recipe, until="recover", overrides=["prune.kinds=[blocks]"])
    assert "no block that is left lost anything" in caplog.text
    assert_same_weights(workplace / "runs/tiny/prune", workplace / "runs/tiny/recover")


def test_blocks_that_had_no_time_for_all_steps(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    asked = [
        "recover.method=blocks",
        "recover.steps=2000",
        "recover.max_seconds=0.5",
        "recover.warmup_steps=0",
    ]
    run_recipe(recipe, until="recover", overrides=asked)
    losses = json.loads((workplace / "runs/tiny/recover/losses.json").read_text())
    assert 1 <= len(losses["loss"]) < 2000


def test_blocks_are_trained_in_one_process(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16), workplace)
    run = Run(load_recipe(write_recipe(workplace, features[1]), ["recover.method=blocks"]), progress=False)
    run.ranks.count = 2
    with pytest.raises(
        PruningError, match=r"recover\.method: blocks: blocks are trained in one process, and 2 were"
    ):
        preflight(run, ["recover"])


def test_a_killed_calibration_goes_on_with_neutral_settings_changed(workplace, features, monkeypatch):
    """Whatever leads to the same result may be another than in the attempt that was killed."""
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    with monkeypatch.context() as patched:
        finish = StatsFolder.finish

        def kill(parts):
            if parts._folder.name == "stats":  # not that of the first pass
                raise KeyboardInterrupt
            return finish(parts)

        patched.setattr(StatsFolder, "finish", kill)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, until="calibrate")
    monkeypatch.setattr(Calibrator, "gather", Mock(side_effect=AssertionError("measured again")))
    asked = ["calibrate.checkpointing=true", "calibrate.batch_size=2", "calibrate.memory_gb=99"]
    run_recipe(recipe, until="calibrate", overrides=[*asked, "calibrate.criteria=[probe_obs]"])
    assert (workplace / "runs/tiny/calibrate/DONE").is_file()


def test_a_killed_scoring_goes_on_with_the_groups_that_are_missing(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="calibrate")
    scored, own = [], base.score_group

    def some(criterion, group, *args):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(group.name)
        return own(criterion, group, *args)

    monkeypatch.setattr(base, "score_group", some)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, until="score")
    again = Mock(side_effect=own)
    monkeypatch.setattr(base, "score_group", again)
    run_recipe(recipe, until="score")
    names = [call.args[1].name for call in again.mock_calls]
    assert names, "nothing was left to do"
    assert not {*scored} & {*names}
