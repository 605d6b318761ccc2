"""The lock of a run directory: who holds it, and when it is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from pruning.errors import PruningError
from pruning.stages.lock import LOCK_FILE, Holder, locked


def write(path, **changed):
    holder = {**vars(Holder.me()), **changed}
    (path / LOCK_FILE).write_text(json.dumps(holder))
    return holder


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path):
    with locked(tmp_path):
        found = json.loads((tmp_path / LOCK_FILE).read_text())
        assert found["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_away_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_second_holder_is_told_process_host_and_time(tmp_path):
    parent = psutil.Process(os.getppid())
    write(tmp_path, pid=parent.pid, started=parent.create_time(), since="2026-01-02T03:04:05")
    message = rf"in use by process {parent.pid} on \S+ since 2026-01-02T03:04:05"
    with pytest.raises(PruningError, match=message), locked(tmp_path):
        pass
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == parent.pid


def test_another_host_is_never_called_dead(tmp_path):
    write(tmp_path, host="elsewhere", pid=1)
    message = r"on elsewhere since .* delete .*\.lock if that process is gone"
    with pytest.raises(PruningError, match=message), locked(tmp_path):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write(tmp_path, pid=child.pid)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_that_was_used_again_is_another_process(tmp_path):
    write(tmp_path, started=Holder.me().started - 3600)
    with locked(tmp_path):
        pass


def test_a_lock_that_was_never_written_whole_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / LOCK_FILE).write_text("")
    with locked(tmp_path):
        pass


def test_the_lock_of_somebody_else_is_not_removed_at_the_end(tmp_path):
    with locked(tmp_path):
        write(tmp_path, host="elsewhere")
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"
