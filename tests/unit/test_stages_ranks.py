"""Launches of several processes: what was left in the shell is no launch, and nobody waits in silence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pruning.errors import PruningError
from pruning.stages import ranks
from pruning.stages.ranks import LAUNCHER, Ranks

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def shell(monkeypatch):
    """Set exactly these variables of a launcher."""

    def put(**values: str) -> None:
        for name in LAUNCHER:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def test_without_a_launch_there_is_one_process(shell, tmp_path):
    for world in ({}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0"}):
        shell(**world)
        assert (Ranks(tmp_path).count, Ranks(tmp_path).is_first) == (1, True)


def test_variables_left_in_the_shell_are_no_launch(shell, tmp_path):
    shell(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1")
    message = r"WORLD_SIZE=2, RANK=0, MASTER_ADDR=127\.0\.0\.1 is set, but LOCAL_RANK, MASTER_PORT is not.* unset WORLD"
    with pytest.raises(PruningError, match=message):
        Ranks(tmp_path)


@pytest.mark.parametrize("world", ["two", "-1", "0", "1.5"])
def test_a_world_size_that_is_no_number_is_named(shell, tmp_path, world):
    shell(WORLD_SIZE=world)
    with pytest.raises(
        PruningError, match=rf"WORLD_SIZE='{world}' in the environment is no number of processes"
    ):
        Ranks(tmp_path)


LONELY = """
import signal
from pathlib import Path
from pruning.stages import ranks
ranks.MEETING_SECONDS = PATIENCE
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
print("waiting", flush=True)
try:
    ranks.Ranks(Path("."), cpu=True)
except ranks.PruningError as error:
    print(error, flush=True)
    import os
    os._exit(2)
"""


def lonely(seconds: float) -> subprocess.Popen:
    """Start one process of a launch of two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = dict(zip(LAUNCHER, ("2", "0", "0", "127.0.0.1", port), strict=True))
    return subprocess.Popen(
        [sys.executable, "-c", LONELY.replace("PATIENCE", str(seconds))],
        env={**os.environ, **launch, "PYTHONPATH": ROOT, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_who_waits_in_vain_says_so_and_ends():
    out, err = lonely(3.0).communicate(timeout=120)
    assert "says that 2 processes run together (WORLD_SIZE), but the others did not come within 3 s" in out, (
        err
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_hears_an_interrupt(how: signal.Signals):
    process = lonely(100.0)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(4)
    process.send_signal(how)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert process.returncode != 0


def test_the_first_process_tells_the_others_where_to_work(tmp_path, monkeypatch):
    first = Ranks(tmp_path)
    first.count, first._launch = 2, "x"
    other = Ranks(tmp_path)
    other.count, other.number, other._launch = 2, 1, "x"
    monkeypatch.setattr(ranks, "POLL_SECONDS", 0.01)
    first.tell("recover", tmp_path / "work")
    assert other.wait("recover") == tmp_path / "work"
    first.tell("recover", None)
    assert other.wait("recover") is None
    first.say("evaluate.dense.samples", {"missing": [1, 2]})
    first.say("evaluate.dense.samples.whole", {"folder": "there"})
    assert other.hear("evaluate.dense.samples") == {"missing": [1, 2]}
    assert other.hear("evaluate.dense.samples.whole") == {"folder": "there"}


def test_every_number_is_of_one_process(tmp_path):
    shares = []
    for number in range(3):
        one = Ranks(tmp_path)
        one.count, one.number = 3, number
        shares.append(one.share([4, 5, 7, 8, 9]))
    assert shares == [[4, 8], [5, 9], [7]]
    assert [*Ranks(tmp_path).share([1, 2])] == [1, 2]
