"""The store: found by what a result depends on, whole or not there, never lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pruning.errors import PruningError
from pruning.store import Key, Result, Store, file_hash, holder, locked

ROOT = str(Path(__file__).parents[2])


def key(seed: int = 0, **asked) -> Key:
    return Key("stats", {"seed": seed}, {"model": "m"}, asked)


def writes(text: str, worked: list[str] | None = None):
    def work(folder: Path) -> dict:
        if worked is not None:
            worked.append(text)
        (folder / "inner").mkdir(exist_ok=True)
        (folder / "inner" / "sums").write_text(text)
        return {"result": {"n": 1}, "seconds": 1.0}

    return work


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_made_is_found_by_what_it_depends_on(store):
    assert store.find(key()) is None
    made = store.make(key(), writes("a"))
    found = store.find(key())
    assert found is not None
    assert found.folder == made.folder == store.path / "stats" / key().id
    assert (found.folder / "inner" / "sums").read_text() == "a"
    assert found.figures == {"n": 1}
    assert found.bytes == 1
    assert store.find(key(seed=1)) is None
    assert store.find(Key("scores", key().config, key().inputs)) is None
    assert store.find(Key("stats", key().config, {"model": "n"})) is None
    assert not list((store.path / ".partial").iterdir())


def test_the_same_content_has_the_same_output_hash_whatever_it_was_made_from(store):
    hashes = {store.make(key(seed), writes("a")).output_hash for seed in (0, 1)}
    assert len(hashes) == 1
    assert store.make(key(2), writes("b")).output_hash not in hashes


def test_what_holds_more_serves_who_asks_for_less_and_nobody_else(store):
    more = store.make(key(names=["a", "b"]), writes("ab"))
    assert store.find(key(names=["b"])).name == more.name
    assert store.find(key(names=["b", "c"])) is None
    assert store.find(key(seed=1, names=["b"])) is None
    less = store.make(key(names=["b"]), writes("b"))
    assert less.name == more.name  # found, not made


@pytest.mark.parametrize("harm", [lambda p: p.write_text("b"), lambda p: p.unlink()])
def test_a_damaged_result_is_set_aside_aloud_and_made_again(store, caplog, harm):
    made = store.make(key(), writes("a"))
    harm(made.folder / "inner" / "sums")
    assert store.find(key()) is None
    assert "stats/inner/sums" in caplog.text
    (aside,) = (store.path / ".aside").glob("*/*")
    assert str(aside) in caplog.text
    assert (aside / "manifest.json").is_file()
    assert (store.make(key(), writes("a")).folder / "inner" / "sums").read_text() == "a"


@pytest.mark.parametrize("name", ["manifest.json", "DONE"])
@pytest.mark.parametrize("text", ["{}", "[1]", "{", None])
def test_what_is_no_whole_record_is_no_result(store, name, text):
    folder = store.make(key(), writes("a")).folder
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    assert Result.read(folder) is None
    assert store.leftovers() == [folder]
    assert (store.make(key(), writes("a")).folder / "DONE").is_file()


def test_a_result_of_another_version_is_a_stranger(store, monkeypatch):
    store.make(key(), writes("a"))
    monkeypatch.setattr("pruning.store.result.version_of", lambda package: "9.9")
    assert store.find(key()) is None


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_manifest_that_says_something_else_is_no_result(store, text):
    made = store.make(key(), writes("a"))
    (made.folder / "manifest.json").write_text(text)
    (made.folder / "DONE").write_text(file_hash(made.folder / "manifest.json"))
    assert store.find(key()) is None
    assert store.results() == []
    assert store.leftovers() == [made.folder]


def test_a_look_touches_nothing(store, tmp_path):
    made = store.make(key(), writes("a"))
    copy = shutil.copytree(made.folder, tmp_path / "copy")
    (made.folder / "inner" / "sums").write_text("b")
    assert store.find(key(), touch=False) is None
    assert store.find(key(), [copy], touch=False).folder == copy
    assert (made.folder / "inner" / "sums").read_text() == "b"
    assert not (store.path / ".aside").exists()


def test_what_a_killed_process_was_linking_is_no_result(store):
    made = store.make(key(asked=["x"]), writes("a"))
    half = made.folder.with_name(f".{made.folder.name}.4242.tmp")
    shutil.copytree(made.folder, half)
    (half / "inner" / "sums").unlink()
    assert [result.folder for result in store.results()] == [made.folder]
    assert store.find(key(asked=[])).folder == made.folder
    assert half in store.leftovers()
    assert half.exists()


def test_a_failure_leaves_no_result_and_what_was_there_whole(store):
    store.make(key(), writes("a"))

    def fail(folder: Path) -> dict:
        (folder / "half").write_text("x")
        raise RuntimeError

    for wanted in (key(seed=1), key()):
        with pytest.raises(RuntimeError):
            store.make(wanted, fail, anew=True)
    assert (store.find(key()).folder / "inner" / "sums").read_text() == "a"
    assert store.find(key(seed=1)) is None
    worked: list[str] = []
    assert store.make(key(seed=1), writes("b", worked)).manifest["artefacts"].keys() == {"inner/sums"}
    assert worked == ["b"]


def test_made_anew_takes_the_place_of_what_was_there(store):
    store.make(key(), writes("a"))
    assert (store.make(key(), writes("b")).folder / "inner" / "sums").read_text() == "a"
    assert (store.make(key(), writes("b"), anew=True).folder / "inner" / "sums").read_text() == "b"
    assert len(store.results()) == 1


def test_an_interrupted_attempt_is_of_use_only_where_it_is_said(store):
    def interrupted(folder: Path) -> dict:
        (folder / ".scratch").mkdir()
        (folder / ".scratch" / "checkpoint").write_text("1")
        raise KeyboardInterrupt

    def goes_on(folder: Path) -> dict:
        return {"result": {"found": (folder / ".scratch" / "checkpoint").exists()}, "seconds": 0.0}

    for resumable in (False, True):
        with pytest.raises(KeyboardInterrupt):
            store.make(key(seed=resumable), interrupted, resumable=resumable)
        with pytest.raises(KeyboardInterrupt):  # of another key it is of no use, and it stays
            store.make(key(seed=5), interrupted)
        made = store.make(key(seed=resumable), goes_on, resumable=resumable)
        assert made.figures == {"found": resumable}
        assert not (made.folder / ".scratch").exists()


def test_a_kill_between_done_and_the_final_name_costs_nothing(store):
    made = store.make(key(), writes("a"))
    (store.path / ".partial").mkdir(exist_ok=True)
    made.folder.rename(store.partial(key()))
    worked: list[str] = []
    found = store.make(key(), writes("b", worked))
    assert (found.folder / "inner" / "sums").read_text() == "a"
    assert not worked


def test_a_copy_elsewhere_is_taken_into_the_store(store, tmp_path):
    made = Store(tmp_path / "other").make(key(), writes("a"))
    moved = made.folder.rename(tmp_path / "run")
    found = store.find(key(), [tmp_path / "missing", moved])
    assert found.folder == store.path / "stats" / key().id
    assert (found.folder / "inner" / "sums").read_text() == "a"
    (moved / "inner" / "sums").write_text("edited")  # the same file, for it is a link
    assert store.find(key(), [moved]) is None


def test_where_links_are_not_to_be_had_files_are_copied(store, tmp_path, monkeypatch):
    made = Store(tmp_path / "other").make(key(), writes("a"))

    def refuse(source, target):
        raise OSError(18, "cross-device link")

    monkeypatch.setattr("os.link", refuse)
    found = store.find(key(), [made.folder])
    assert found.damage() is None
    assert not (found.folder / "inner" / "sums").samefile(made.folder / "inner" / "sums")


def in_another_process(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_waits_for_the_result_that_the_first_makes(store, tmp_path, caplog):
    code = f"""
        import sys, time
        from pathlib import Path
        from pruning.store import Key, Store

        def work(folder):
            print("inside", flush=True)
            while not Path({str(tmp_path / "go")!r}).exists():
                time.sleep(0.02)
            (folder / "sums").write_text("first")
            return {{"seconds": 0.0}}

        Store({str(store.path)!r}).make(Key("stats", {{"seed": 0}}, {{"model": "m"}}), work)
    """
    first = in_another_process(code)
    assert first.stdout.readline() == "inside\n"
    worked: list[str] = []
    threading.Timer(0.7, (tmp_path / "go").touch).start()
    with caplog.at_level(logging.INFO):
        found = store.make(key(), writes("second", worked))
    assert first.wait(30) == 0
    assert not worked
    assert (found.folder / "sums").read_text() == "first"
    assert f"stats     is being made by process {first.pid} on " in caplog.text


def test_the_lock_of_a_killed_process_is_taken_over(store, tmp_path):
    code = f"""
        import os, signal
        from pruning.store import Key, Store

        def work(folder):
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)

        Store({str(store.path)!r}).make(Key("stats", {{"seed": 0}}, {{"model": "m"}}), work)
    """
    assert in_another_process(code).wait(30) == -9
    assert store.partial(key()).is_dir()
    began = time.monotonic()
    assert store.make(key(), writes("a")).manifest["artefacts"].keys() == {"inner/sums"}
    assert time.monotonic() - began < 20


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path):
    lock = tmp_path / ".lock"
    message = rf"^it is in use by process {os.getpid()} on \S+ since \S+; wait$"
    with locked(lock, "it", "wait"):
        assert lock.exists()
        with pytest.raises(PruningError, match=message), locked(lock, "it", "wait"):
            pass
    with pytest.raises(RuntimeError), locked(lock, "it", "wait"):
        raise RuntimeError
    assert not lock.exists()
    assert holder(lock) == "another process"


def test_users_are_the_run_directories_that_are_still_there(store, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({}))
        store.register(tmp_path / name)
    (tmp_path / "b").rename(tmp_path / "c")
    assert store.users() == [tmp_path / "a", tmp_path / "c"]  # renamed beside the store
    (tmp_path / "c").rename(tmp_path / "a" / "c")
    assert store.users() == [tmp_path / "a"]


def test_nothing_is_cleaned_while_a_run_is_at_work(store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{}")
    store.register(tmp_path / "a")
    message = r"the run .*a is in use by process \d+ .*; clean when it has ended"
    with locked(tmp_path / "a" / ".lock", "a", ""), pytest.raises(PruningError, match=message):
        store.cleaning().__enter__()
    with store.cleaning():
        pass
