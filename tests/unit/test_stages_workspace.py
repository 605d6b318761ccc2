"""Whose run directory is it: other recipes, models and data are refused, and what is there stays whole."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from pruning.data import UnreadableRow
from pruning.errors import PruningError
from pruning.settings import Model
from pruning.stages.identity import model_identity
from pruning.stages.workspace import Workspace
from pruning.store import Hashes, Key
from tests.unit.test_stages_stage import make_recipe


def claim(recipe):
    """Take the run directory, as a stage does before it works."""
    workspace = Workspace(recipe)
    with workspace.held():
        workspace.claim()


def finish(recipe, name="calibrate"):
    """Claim, and finish a stage that wrote nothing."""
    claim(recipe)
    workspace = Workspace(recipe)
    result = workspace.store.make(Key(name, {}, {}), lambda folder: {"seconds": 1.0})
    workspace.folder.attach(name, result, workspace.store)


def owner(tmp_path):
    return json.loads((tmp_path / "runs" / "r" / "run.json").read_text())


def test_a_claim_writes_owner_and_resolved_recipe(tmp_path):
    recipe = make_recipe(tmp_path)
    claim(recipe)
    owner = json.loads((tmp_path / "runs" / "r" / "run.json").read_text())
    assert owner["name"] == "r"
    assert owner["data"]["source"] == "digits"
    assert "num_samples: 256" in (tmp_path / "runs" / "r" / "recipe.yaml").read_text()
    claim(recipe)


def test_another_recipe_in_the_same_directory_is_refused(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    other = dataclasses.replace(recipe, name="q")
    with pytest.raises(PruningError, match=r"it is of the recipe 'r', this one is 'q'.*--fresh") as refused:
        claim(other)
    assert str(refused.value).count("run_dir=") == 1
    Workspace(other).check_owner(fresh=True)


def test_another_model_is_refused_naming_both(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"a": 1}')
    changed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, source=str(other)))
    message = r"it holds the model '.*/model' \(hash .{8}\), the recipe asks for '.*/other'"
    with pytest.raises(PruningError, match=message):
        claim(changed)
    assert json.loads((tmp_path / "runs" / "r" / "run.json").read_text())["model"]["source"].endswith(
        "/model"
    )


def test_fresh_takes_over_anothers_directory_and_its_results_stay_in_the_store(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    clear(dataclasses.replace(recipe, name="q"))
    assert owner(tmp_path)["name"] == "q"
    assert Workspace(recipe).folder.done() == []
    assert [result.kind for result in Workspace(recipe).store.results()] == ["calibrate"]


def test_fresh_leaves_the_own_results_in_view_until_there_are_new_ones(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    clear(recipe)
    assert Workspace(recipe).folder.done() == ["calibrate"]


def test_a_model_whose_files_changed_is_another_model(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    (tmp_path / "model" / "config.json").write_text('{"trained": "on"}')
    with pytest.raises(PruningError, match="it holds the model"):
        claim(recipe)


def test_the_same_model_in_another_place_is_the_same_model(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = dataclasses.replace(recipe.model, source=str(tmp_path / "moved"))
    claim(dataclasses.replace(recipe, model=moved))


def test_other_data_are_refused_naming_both(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    images = tmp_path / "images"
    images.mkdir()
    changed = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=str(images)))
    with pytest.raises(PruningError, match=r"it holds the data 'digits' .*, the recipe asks for '.*/images'"):
        claim(changed)


def test_a_directory_of_something_else_is_refused(tmp_path):
    recipe = make_recipe(tmp_path)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "thesis.tex").write_text("")
    with pytest.raises(PruningError, match=r"is not empty and no run directory \(it holds thesis\.tex\)"):
        claim(recipe)
    with pytest.raises(PruningError, match="no run directory"):
        Workspace(recipe).check_owner(fresh=True)  # --fresh takes over runs, not theses


def test_before_the_first_stage_is_done_the_directory_may_be_taken_over(tmp_path):
    recipe = make_recipe(tmp_path)
    claim(recipe)
    (tmp_path / "model" / "config.json").write_text('{"mended": true}')
    images = tmp_path / "images"
    images.mkdir()
    data = dataclasses.replace(recipe.data, source=str(images))
    claim(dataclasses.replace(recipe, name="q", data=data))
    assert owner(tmp_path)["name"] == "q"
    assert owner(tmp_path)["data"]["source"] == str(images)


@pytest.mark.parametrize("text", ["[1]", "{", "{}", '{"name": "r", "model": 3, "data": {}}', ""])
def test_a_broken_owner_is_named_and_fresh_takes_over(tmp_path, text):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    (tmp_path / "runs" / "r" / "run.json").write_text(text)
    with pytest.raises(
        PruningError, match=r"run\.json: .*; take it over with --fresh .*or choose another run_dir"
    ):
        claim(recipe)
    clear(recipe)
    (kept,) = (tmp_path / "runs" / ".store" / ".aside").glob("*/run.json")
    assert kept.read_text() == text
    assert Workspace(recipe).store.results()


def test_a_broken_owner_of_nothing_is_nobodys_to_take(tmp_path):
    recipe = make_recipe(tmp_path)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "run.json").write_text("[1]")
    for fresh in (False, True):
        with pytest.raises(
            PruningError, match=r"expected a mapping, found \[1\]; delete it, or choose another"
        ):
            Workspace(recipe).check_owner(fresh=fresh)


def clear(recipe):
    """Do what --fresh does before the first stage."""
    workspace = Workspace(recipe)
    with workspace.held():
        workspace.check_owner(fresh=True)
        workspace.take_over()
        workspace.claim()


def test_finished_stages_without_an_owner_are_refused_with_advice_that_works(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    (tmp_path / "runs" / "r" / "run.json").unlink()
    (tmp_path / "runs" / "r" / "notes.txt").write_text("mine")
    with pytest.raises(
        PruningError, match=r"holds finished stages \(calibrate\) but no run\.json.*--fresh.*run_dir=…"
    ):
        claim(recipe)
    clear(recipe)
    assert [result.kind for result in Workspace(recipe).store.results()] == ["calibrate"]
    assert owner(tmp_path)["name"] == "r"
    assert (tmp_path / "runs" / "r" / "notes.txt").read_text() == "mine"


def test_data_mended_after_an_unreadable_row_are_the_same_data(tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.png").write_text("broken")
    recipe = make_recipe(tmp_path)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=str(images)))
    finish(recipe)
    before = Workspace(recipe).identity["data"]["hash"]
    workspace = Workspace(recipe)
    with pytest.raises(UnreadableRow), workspace.held():
        raise UnreadableRow("row 0")
    (images / "0.png").write_text("mended, longer")
    claim(recipe)
    assert "have been changed since a row could not be read; finished stages are kept" in caplog.text
    assert Workspace(recipe).identity["data"]["hash"] == before
    claim(recipe)
    (images / "0.png").write_text("other images")
    with pytest.raises(PruningError, match="it holds the data"):
        claim(recipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o500)
    with pytest.raises(PruningError, match=r"cannot be written to: .*choose another run_dir"):
        claim(make_recipe(tmp_path))


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(PruningError, match=r"run_dir '.*r' cannot be written to"):
        claim(make_recipe(tmp_path))


def test_a_directory_in_which_nothing_came_about_is_taken_away(tmp_path):
    workspace = Workspace(make_recipe(tmp_path))
    with workspace.held(), workspace.held():
        assert (tmp_path / "runs" / "r" / ".lock").is_file()
    assert not (tmp_path / "runs" / "r").exists()


def test_files_of_equal_size_and_time_are_not_read_again(tmp_path, monkeypatch):
    recipe, read = make_recipe(tmp_path), []
    monkeypatch.setattr("pruning.store.hashes.file_hash", lambda path: read.append(path.name) or "hash")
    remembered = tmp_path / "store" / "hashes.json"
    for again in range(2):
        hashes = Hashes(remembered)
        first = model_identity(recipe, hashes)["hash"]
        hashes.save()
        assert read == ["config.json"], again
    os.utime(tmp_path / "model" / "config.json", ns=(1, 1))
    assert model_identity(recipe, Hashes(remembered))["hash"] == first
    assert read == ["config.json"] * 2
    remembered.write_text("{")
    model_identity(recipe, Hashes(remembered))
    assert read == ["config.json"] * 3


def test_a_pipeline_is_known_by_all_its_parts(tmp_path):
    recipe, model = make_recipe(tmp_path), tmp_path / "model"
    (model / "model_index.json").write_text(json.dumps({"_class_name": "P", "unet": [], "vae": []}))
    for part in ("unet", "vae", "other"):
        (model / part).mkdir()
        (model / part / "config.json").write_text(part)
    hashes = Hashes(tmp_path / "hashes.json")
    seen = [model_identity(recipe, hashes)["hash"]]
    for part, changes in (("other", False), ("vae", True), ("unet", True)):
        (model / part / "config.json").write_text(f"{part} changed")
        seen.append(model_identity(recipe, hashes)["hash"])
        assert (seen[-1] != seen[-2]) == changes, part


BARE = ("config.json", "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("subfolder", "files", "unread"),
    [
        (None, [*BARE, "scheduler/scheduler_config.json"], ["old/config.json"]),
        (None, [f"unet/{BARE[0]}", f"unet/{BARE[1]}", "scheduler_config.json"], []),
        ("ema", [*(f"ema/{name}" for name in BARE), "scheduler/scheduler_config.json"], ["old/config.json"]),
        (
            "ema",
            ["model_index.json", f"ema/{BARE[1]}", f"unet/{BARE[1]}", "vae/config.json"],
            ["whole.safetensors"],
        ),
    ],
    ids=["bare", "folder", "subfolder", "pipeline with a subfolder"],
)
def test_a_local_model_is_known_by_every_file_that_loading_reads(tmp_path, subfolder, files, unread):
    recipe, model = make_recipe(tmp_path), tmp_path / "model"
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, subfolder=subfolder))
    (model / "config.json").unlink()
    for name in (*files, *unread):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(json.dumps({"unet": [], "vae": []}))

    def known() -> str:
        return model_identity(recipe, Hashes(tmp_path / "none.json"))["hash"]

    before = known()
    for name in (*files, *unread):
        was = (model / name).read_text()
        (model / name).write_text(was + " ")
        assert (known() != before) == (name in files), name
        (model / name).write_text(was)
    other = dataclasses.replace(recipe.model, subfolder="other")
    assert (
        model_identity(dataclasses.replace(recipe, model=other), Hashes(tmp_path / "none.json"))["hash"]
        != before
    )


def test_another_null_class_is_named(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, null_class="none"))
    with pytest.raises(PruningError, match=r"\(null_class auto, hash .*\(null_class none, hash"):
        claim(other)


def test_a_home_folder_in_the_places_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    workspace = Workspace(dataclasses.replace(make_recipe(tmp_path), run_dir="~/r", store="~/kept"))
    assert workspace.folder.path == tmp_path / "home" / "r"
    assert workspace.store.path == tmp_path / "home" / "kept"


def test_what_a_killed_process_left_half_written_is_swept(tmp_path):
    recipe = make_recipe(tmp_path)
    finish(recipe)
    half = tmp_path / "runs" / "r" / ".calibrate.4242.tmp"
    half.mkdir()
    (half / "DONE").write_text("half")
    claim(recipe)
    assert not half.exists()


@pytest.mark.parametrize("key", ["revision", "variant", "subfolder"])
def test_a_model_on_the_hub_is_known_by_all_that_names_it(tmp_path, key):
    recipe = make_recipe(tmp_path)
    recipe = dataclasses.replace(recipe, model=Model(source="owner/name"))
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **{key: "x"}))
    hashes = Hashes(tmp_path / "hashes.json")
    assert model_identity(recipe, hashes)["hash"] != model_identity(other, hashes)["hash"]
