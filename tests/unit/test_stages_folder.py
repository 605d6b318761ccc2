"""The run directory as a view: what it shows, what leaves it, and that nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pruning.errors import PruningError
from pruning.stages.folder import RunFolder
from pruning.stages.summary import interval
from pruning.store import Key, Result, Store, changes


@pytest.fixture
def place(tmp_path):
    """An empty view of a run, and its store."""
    folder = RunFolder(tmp_path / "runs" / "r")
    folder.path.mkdir(parents=True)
    (folder.path / "run.json").write_text(json.dumps({"name": "r", "model": {}, "data": {}, "results": {}}))
    return folder, Store(tmp_path / "runs" / ".store")


def result(store: Store, stage: str, seed: int = 0) -> Result:
    def work(folder: Path) -> dict:
        (folder / "file").write_text(f"{stage} {seed}")
        return {"seconds": 2.0, "uses": ["first_pass/x"] if stage == "calibrate" else []}

    return store.make(Key(stage, {"seed": seed}, {}), work)


def test_a_stage_that_is_attached_has_its_files_its_manifest_and_done(place):
    folder, store = place
    assert folder.done() == []
    assert folder.attach("calibrate", result(store, "calibrate"), store) is None
    assert sorted(p.name for p in folder.stage("calibrate").iterdir()) == ["DONE", "file", "manifest.json"]
    assert folder.stage("calibrate").joinpath("file").samefile(result(store, "calibrate").folder / "file")
    assert folder.done() == ["calibrate"]
    assert folder.manifest("calibrate")["seconds"] == 2.0
    assert folder.whole("calibrate").name == result(store, "calibrate").name
    assert folder.uses() == {"calibrate": [result(store, "calibrate").name, "first_pass/x"]}


def test_another_result_takes_the_place_and_those_after_it_leave_the_view_not_the_store(place):
    folder, store = place
    for stage in ("calibrate", "score", "plan"):
        folder.attach(stage, result(store, stage), store)
    folder.attach("score", result(store, "score", seed=1), store)
    assert folder.done() == ["calibrate", "score"]
    assert (folder.stage("score") / "file").read_text() == "score 1"
    assert len(store.results()) == 4
    assert folder.uses() == {
        "calibrate": [result(store, "calibrate").name, "first_pass/x"],
        "score": [result(store, "score", seed=1).name],
    }
    folder.attach("score", result(store, "score"), store)
    folder.attach("plan", result(store, "plan"), store)
    assert folder.done() == ["calibrate", "score", "plan"]


def test_the_same_result_again_touches_nothing(place):
    folder, store = place
    for stage in ("calibrate", "score"):
        folder.attach(stage, result(store, stage), store)
    before = folder.stage("calibrate").stat().st_ino
    assert folder.attach("calibrate", result(store, "calibrate"), store) is None
    assert folder.stage("calibrate").stat().st_ino == before
    assert folder.done() == ["calibrate", "score"]


@pytest.mark.parametrize("harm", ["edit", "replace", "remove", "manifest"])
def test_what_was_changed_by_hand_is_mended_and_kept_beside(place, harm):
    folder, store = place
    whole = result(store, "calibrate")
    folder.attach("calibrate", whole, store)
    file = folder.stage("calibrate") / ("manifest.json" if harm == "manifest" else "file")
    file.unlink()  # so that the file in the store stays as it was
    if harm != "remove":
        file.write_text("by hand")
    if harm != "manifest":
        with pytest.raises(
            PruningError, match=r"calibrate/file (is missing|was changed) since the stage wrote it"
        ):
            folder.whole("calibrate")
    aside = folder.attach("calibrate", whole, store)
    assert (folder.stage("calibrate") / "file").read_text() == "calibrate 0"
    assert harm == "remove" or (aside / file.name).read_text() == "by hand"


def test_a_file_that_somebody_laid_into_a_stage_is_kept_beside_when_the_stage_changes(place):
    folder, store = place
    folder.attach("calibrate", result(store, "calibrate"), store)
    folder.attach("score", result(store, "score"), store)
    for stage in ("calibrate", "score"):
        (folder.stage(stage) / "notes.txt").write_text(stage)
    aside = folder.attach("calibrate", result(store, "calibrate", seed=1), store)
    assert (aside / "notes.txt").read_text() == "calibrate"
    assert folder.done() == ["calibrate"]
    assert len(list((store.path / ".aside").glob("*/*/notes.txt"))) == 2


def test_a_view_without_its_store_loses_nothing_when_another_result_comes(place, tmp_path):
    folder, store = place
    folder.attach("calibrate", result(store, "calibrate"), store)
    moved = Store(tmp_path / "new")
    folder.attach("calibrate", result(moved, "calibrate", seed=1), moved)
    assert moved.find(Key("calibrate", {"seed": 0}, {})) is not None
    folder.detach(["calibrate"], moved)
    assert folder.done() == []
    assert moved.find(Key("calibrate", {"seed": 1}, {})) is not None


def test_a_stage_that_has_not_been_run_is_named(place):
    folder, _ = place
    with pytest.raises(PruningError, match="stage 'plan' has not been run; run `sinkprune plan` first"):
        folder.whole("plan")
    assert folder.manifest("plan") == {}


def test_a_directory_of_an_earlier_version_is_told_what_to_do(place):
    folder, _ = place
    (folder.path / "run.json").write_text(json.dumps({"name": "r", "model": {}, "data": {}}))
    (folder.path / "sinks").mkdir()
    (folder.path / "sinks" / "DONE").touch()
    with pytest.raises(
        PruningError, match=r"was written by an earlier version .*; move it away, or choose another"
    ):
        folder.owner()


@pytest.mark.parametrize("text", ["[1]", "{", "{}", '{"name": "r", "model": 3, "data": {}}', ""])
def test_a_broken_owner_is_named(place, text):
    folder, _ = place
    (folder.path / "run.json").write_text(text)
    with pytest.raises(PruningError, match=r"run\.json: .*; advice"):
        folder.owner("advice")


def test_changes_name_every_leaf_that_differs():
    before, after = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert changes(before, after) == [("a.c", [1], [2]), ("d", 2, None), ("e", None, 3)]


@pytest.mark.parametrize(("coverage", "shown"), [(None, True), (0.96, True), (0.9375, False), (0.5, False)])
def test_an_interval_of_the_summary_covers_what_its_name_says(coverage, shown):
    found = {"x": 1.5, "x_ci95": [1.0, 2.0], "x_coverage": coverage}
    assert interval(found, "x") == ([1.0, 2.0] if shown else None)
