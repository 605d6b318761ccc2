"""The run directory: fingerprints, commits, what moves to .old."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from pruning.errors import PruningError
from pruning.files import read_json, write_json
from pruning.stages import artefacts
from pruning.stages.folder import STAGES, RunFolder, changes, fingerprint


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def finish(folder: RunFolder, name: str, text: str = "x", mark: str = "f") -> None:
    partial = folder.begin(name, mark, resumable=False)
    (partial / "out.txt").write_text(text)
    rest = {"config": {}, "inputs": {}, "result": {}, "seconds": 1.0, "finished": "2026-01-02T03:04:05"}
    folder.commit(name, {"fingerprint": mark, **rest})


def test_a_fingerprint_changes_with_stage_config_and_input_and_with_nothing_else():
    base = fingerprint("plan", {"a": 1, "b": [1, 2]}, {"score": "h"})
    assert fingerprint("plan", {"b": [1, 2], "a": 1}, {"score": "h"}) == base
    others = [
        fingerprint("score", {"a": 1, "b": [1, 2]}, {"score": "h"}),
        fingerprint("plan", {"a": 2, "b": [1, 2]}, {"score": "h"}),
        fingerprint("plan", {"a": 1, "b": [2, 1]}, {"score": "h"}),
        fingerprint("plan", {"a": 1, "b": [1, 2]}, {"score": "i"}),
    ]
    assert len({base, *others}) == 5


def test_a_commit_lists_its_files_with_their_hashes_and_ends_with_done(folder):
    finish(folder, "plan", "abc")
    assert (folder.stage("plan") / "DONE").is_file()
    entry = folder.manifest("plan")["artefacts"]
    assert list(entry) == ["out.txt"]
    assert entry["out.txt"]["bytes"] == 3
    assert entry["out.txt"]["sha256"].startswith("ba7816bf")  # SHA-256 of "abc"
    assert not folder.partial("plan").exists()


def test_a_stage_without_done_is_not_done(folder):
    finish(folder, "plan")
    (folder.stage("plan") / "DONE").unlink()
    assert not folder.is_current("plan", "f")
    with pytest.raises(PruningError, match=r"stage 'plan' has not been run; run `sinkprune plan` first"):
        folder.output_hash("plan")


def test_another_fingerprint_is_not_current(folder):
    finish(folder, "plan")
    assert folder.is_current("plan", "f")
    assert not folder.is_current("plan", "g")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "plan/out.txt is missing"),
        ("ab", "plan/out.txt was changed since the stage wrote it"),
        ("abd", "plan/out.txt was changed since the stage wrote it"),
    ],
)
def test_an_artefact_that_is_missing_cut_short_or_edited_is_seen(folder, content, reason):
    finish(folder, "plan", "abc")
    assert folder.damage("plan") is None
    path = folder.stage("plan") / "out.txt"
    status = path.stat()
    path.unlink() if content is None else path.write_text(content)
    if content is not None:  # a small file is read: an equal size is no proof
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert folder.damage("plan") == reason
    assert not folder.is_current("plan", "f")
    with pytest.raises(PruningError, match=rf"{reason}; run `sinkprune plan`"):
        folder.output_hash("plan")


def test_a_copied_run_is_whole(folder, tmp_path):
    finish(folder, "plan", "abc")
    shutil.copytree(folder.path, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "plan" / "out.txt", ns=(1, 1))
    assert RunFolder(tmp_path / "copy").is_current("plan", "f")


def test_the_output_hash_is_of_names_and_contents(folder):
    hashes = set()
    for text in ("abc", "abd", "abc"):
        folder.retire(["plan"])
        finish(folder, "plan", text)
        hashes.add(folder.output_hash("plan"))
    assert len(hashes) == 2


def test_a_large_file_is_read_only_if_its_size_or_time_changed(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text("abc")
    entry = artefacts.describe_files(tmp_path, ())["a"]
    path.write_text("xyz")
    os.utime(path, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    assert artefacts.hash_now(path, entry) != entry["sha256"]
    monkeypatch.setattr(artefacts, "LARGE", 2)
    assert artefacts.hash_now(path, entry) == entry["sha256"]  # documented: this change goes unseen
    os.utime(path, ns=(entry["mtime_ns"], entry["mtime_ns"] + 1))
    assert artefacts.hash_now(path, entry) != entry["sha256"]


@pytest.mark.parametrize(
    "content",
    ["[1]", "3", "", "{", "{}", '{"fingerprint": 3}', "[" * 100_000, "\udc80"],
)
def test_a_broken_record_of_a_stage_is_named_and_deleting_it_redoes_the_stage(folder, content):
    finish(folder, "plan")
    path = folder.stage("plan") / "manifest.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        PruningError, match=r"plan/manifest\.json: .*; delete it, and the stage is done again$"
    ):
        folder.manifest("plan")
    path.unlink()
    assert not folder.is_done("plan")


@pytest.mark.parametrize("broken", [{"bytes": "3"}, {"sha256": None}])
def test_a_record_with_a_broken_entry_is_named(folder, broken):
    finish(folder, "plan")
    path = folder.stage("plan") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artefacts"]["out.txt"] |= broken
    write_json(path, manifest)
    with pytest.raises(PruningError, match=r"is no record of a stage: 'artefacts' is"):
        folder.damage("plan")


def test_later_stages_come_back_if_the_redone_one_ends_as_before(folder):
    for text, mark, back in (("a", "f", ["score", "plan"]), ("b", "f", []), ("b", "g", [])):
        folder.retire(STAGES)
        for name in ("calibrate", "score", "plan"):
            finish(folder, name, "a")
        old = folder.retire(["calibrate", "score", "plan"])
        finish(folder, "calibrate", text, mark)
        assert folder.restore(old, ["calibrate"]) == back
        assert folder.done() == ["calibrate", *back]


def test_begin_gives_an_empty_folder_unless_an_equal_attempt_can_be_resumed(folder):
    for resumable, mark, kept in ((True, "f", True), (False, "f", False), (True, "g", False)):
        partial = folder.begin("recover", "f", resumable=True)
        (partial / "checkpoint").write_text("1")
        again = folder.begin("recover", mark, resumable=resumable)
        assert again == partial
        assert (again / "checkpoint").exists() == kept
    old = list((folder.path / ".old").glob("*/.partial/recover/checkpoint"))
    assert len(old) == 1  # the last case: an attempt worth resuming is kept when the settings change


def test_retired_stages_move_together_with_the_recipe_of_their_time(folder):
    for name in ("score", "plan", "prune"):
        finish(folder, name, name)
    (folder.path / "recipe.yaml").write_text("seed: 1")
    folder.begin("recover", "f", resumable=True)
    old = folder.retire(["plan", "prune", "recover"])
    assert old is not None
    assert (old / "plan" / "out.txt").read_text() == "plan"
    assert (old / "prune" / "DONE").is_file()
    assert (old / ".partial" / "recover").is_dir()
    assert (old / "recipe.yaml").read_text() == "seed: 1"
    assert folder.is_done("score")
    assert not folder.is_done("plan")
    assert folder.retire(["plan"]) is None


def test_two_retirements_in_one_second_have_two_folders(folder):
    finish(folder, "plan", "1")
    first = folder.retire(["plan"])
    finish(folder, "plan", "2")
    second = folder.retire(["plan"])
    assert first is not None
    assert second is not None
    assert first != second
    assert {(f / "plan" / "out.txt").read_text() for f in (first, second)} == {"1", "2"}


def test_retire_all_leaves_no_owner(folder):
    finish(folder, "plan")
    write_json(folder.path / "run.json", {})
    (folder.path / "recipe.yaml").write_text("seed: 1")
    old = folder.retire_all()
    assert [p.name for p in folder.path.iterdir() if p.name != ".partial"] == [".old"]
    assert old is not None
    assert sorted(p.name for p in old.iterdir()) == ["plan", "recipe.yaml", "run.json"]


def test_json_is_written_whole_and_a_broken_file_is_named(tmp_path):
    write_json(tmp_path / "a.json", {"é": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == {"é": 1}
    assert read_json(tmp_path / "b.json") is None
    for text, found in (("{", "cannot be read as JSON"), ("[1]", r"expected a mapping, found \[1\]")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(PruningError, match=rf"a\.json: {found}.*; delete it"):
            read_json(tmp_path / "a.json")


def test_changes_name_every_leaf_that_differs():
    before = {"a": 1, "b": {"c": [1], "d": 2}, "gone": 0}
    after = {"a": 1, "b": {"c": [2], "d": 2}, "new": {"x": 1}}
    assert changes(before, after) == [("b.c", [1], [2]), ("gone", 0, None), ("new.x", None, 1)]
    assert changes(json.loads(json.dumps(before)), before) == []
