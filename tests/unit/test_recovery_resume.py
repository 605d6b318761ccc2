"""Checkpoints: exact resume, whole or not at all, never mixed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from pruning import files
from pruning.errors import PruningError
from pruning.recovery import checkpoints
from tests.unit.recovery_setup import run, small, stripes, weights

ROOT = Path(__file__).parents[2]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


METHODS: dict[str, dict[str, Any]] = {
    "all": {},
    "lora": {"train": "lora", "lora_rank": 4},
    "few": {"train": "norms_biases_head"},
    "features": {"feature_weight": 0.5},
    "early": {"eval_every": 2, "held_out": 4, "early_stop": 3},
    "checkpointed": {"gradient_checkpointing": True, "train": "lora", "lora_rank": 2},
}
"""Ways to train, by a short name."""


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_with_the_same_losses_and_weights(tmp_path, method):
    changes = METHODS[method]
    whole = small(seed=1, dropout=0.2)
    expected = run(whole, small(dropout=0.2), **changes)

    command = [sys.executable, "-m", "tests.unit.recovery_setup", str(tmp_path / "killed")]
    command += [json.dumps(changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = _names(tmp_path / "killed")
    assert "step-00000003" in left
    assert "step-00000006" not in left
    assert any(name.endswith(".tmp") for name in left)

    resumed = small(seed=1, dropout=0.2)
    result = run(resumed, small(dropout=0.2), folder=tmp_path / "killed", **changes)
    assert result.resumed_from == 3
    assert result.losses == expected.losses  # bit for bit
    assert result.evaluations == expected.evaluations
    assert [step for step, _ in result.losses] == list(range(1, 9))
    assert torch.equal(weights(resumed), weights(whole))
    assert not any(name.endswith(".tmp") for name in _names(tmp_path / "killed"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one_does_and_resume(tmp_path, method):
    alone = small(1)
    expected = run(alone, small(), **METHODS[method])
    script = tmp_path / "two.py"
    script.write_text(
        "import json, os, sys, torch\n"
        "from tests.unit.recovery_setup import run, small, weights\n"
        "folder, steps_to_live = sys.argv[1], int(sys.argv[2])\n"
        "def progress(info):\n"
        "    if info.step == steps_to_live: os.kill(os.getpid(), 9)\n"
        "student = small(1)\n"
        "result = run(student, small(), folder=folder, progress=progress, **json.loads(sys.argv[3]))\n"
        "assert torch.distributed.is_initialized()\n"
        "told = [result.resumed_from, result.losses, weights(student).tolist()]\n"
        "open(f'{folder}.rank' + os.environ['RANK'], 'w').write(json.dumps(told))\n"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
    }

    def launch(folder: Path, steps_to_live: int) -> int:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
        ]
        command += [str(folder), str(steps_to_live), json.dumps(METHODS[method])]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode

    assert launch(tmp_path / "two", 5) != 0
    assert launch(tmp_path / "two", 99) == 0
    told, other = (json.loads((tmp_path / f"two.rank{rank}").read_text()) for rank in (0, 1))
    assert told == other
    assert told[0] == 3
    assert [loss for _, loss in told[1]] == pytest.approx([loss for _, loss in expected.losses], rel=1e-4)
    torch.testing.assert_close(torch.tensor(told[2]), weights(alone), rtol=1e-3, atol=2e-5)


def test_a_finished_run_is_taken_from_its_last_checkpoint(tmp_path):
    first, second = small(1), small(1)
    done = run(first, small(), folder=tmp_path)
    again = run(second, small(), folder=tmp_path)
    assert again.resumed_from == again.steps == 8
    assert again.losses == done.losses
    assert again.seconds == done.seconds
    assert again.images_per_second == done.images_per_second
    assert torch.equal(weights(first), weights(second))


def test_the_last_checkpoints_are_kept_without_pickle(tmp_path):
    run(small(1), small(), folder=tmp_path, checkpoint_every=2, keep_checkpoints=2)
    assert _names(tmp_path) == ["step-00000006", "step-00000008"]
    expected = ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert _names(tmp_path / "step-00000008") == expected
    state = json.loads((tmp_path / "step-00000008" / "state.json").read_text())
    assert state["step"] == 8
    assert len(state["losses"]) == 8


def test_checkpoint_every_zero_writes_only_the_last(tmp_path):
    run(small(1), small(), folder=tmp_path, checkpoint_every=0)
    assert _names(tmp_path) == ["step-00000008"]


@pytest.mark.parametrize("broken", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_a_broken_checkpoint_is_passed_over(tmp_path, caplog, broken):
    expected = run(small(1), small(), folder=tmp_path)
    path = tmp_path / "step-00000008" / broken
    path.write_bytes(path.read_bytes()[:50])
    result = run(small(1), small(), folder=tmp_path)
    assert "step-00000008 is passed over" in caplog.text
    assert result.resumed_from == 6
    assert result.losses == expected.losses


def test_another_configuration_is_never_mixed(tmp_path):
    run(small(1), small(), folder=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        PruningError, match=r"another configuration: settings.learning_rate was 0.001, is 0.002"
    ):
        run(small(1), small(), folder=tmp_path, learning_rate=2e-3)
    with pytest.raises(PruningError, match="student was"):
        run(small(2), small(), folder=tmp_path)
    with pytest.raises(PruningError, match="teacher was"):
        run(small(1), small(3), folder=tmp_path)
    with pytest.raises(PruningError, match=r"images.count was 24, is 25"):
        run(small(1), small(), stripes(25), folder=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_constant_learning_rate_can_be_prolonged(tmp_path):
    expected = run(small(1), small(), schedule="constant", steps=8)
    run(small(1), small(), schedule="constant", steps=5, folder=tmp_path)
    longer = run(small(1), small(), schedule="constant", steps=8, folder=tmp_path)
    assert longer.resumed_from == 5
    assert longer.losses == expected.losses
    with pytest.raises(PruningError, match=r"settings.schedule was 'constant', is 'cosine'"):
        run(small(1), small(), folder=tmp_path)


def test_a_time_limit_ends_the_run_and_the_rest_follows_later(tmp_path):
    expected = run(small(1), small())
    short = run(small(1), small(), folder=tmp_path, max_seconds=1e-6)
    assert short.steps == len(short.losses) == 1
    rest = run(small(1), small(), folder=tmp_path)
    assert rest.resumed_from == 1
    assert rest.losses == expected.losses


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path, monkeypatch, error):
    write = checkpoints.save_file

    def save_file(tensors, path):
        if "step-00000006" in str(path) and path.name == "ema.safetensors":
            raise error
        write(tensors, path)

    expected = run(small(1), small())
    monkeypatch.setattr(checkpoints, "save_file", save_file)
    with pytest.raises(
        PruningError, match=r"the disk is full; free some space.*Earlier checkpoints there are whole"
    ):
        run(small(1), small(), folder=tmp_path)
    assert _names(tmp_path) == ["step-00000003"]
    monkeypatch.undo()
    result = run(small(1), small(), folder=tmp_path)
    assert result.resumed_from == 3
    assert result.losses == expected.losses


def test_too_little_room_is_said_before_training(tmp_path, monkeypatch):
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    seen = []
    with pytest.raises(PruningError, match=r"about [\d.]+ kB are needed and 1\.00 kB are free"):
        run(small(1), small(), folder=tmp_path, progress=seen.append)
    assert seen == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PruningError, match="a part of the path is a file"):
        run(small(1), small(), folder=tmp_path / "file" / "run")
    with pytest.raises(PruningError, match="a file of that name is in the way"):
        run(small(1), small(), folder=tmp_path / "file")


def test_a_student_with_nan_weights_is_not_saved(tmp_path):
    student = small(1)
    state = checkpoints.TrainingState(
        student, checkpoints.EMAModel(student.parameters()), torch.optim.AdamW(student.parameters())
    )
    with torch.no_grad():
        next(student.parameters())[0] = float("nan")
    with pytest.raises(
        PruningError, match="holds NaN or infinity after step 0; no checkpoint of it is written"
    ):
        checkpoints.write_checkpoint(tmp_path, state, {}, keep=1)
    assert _names(tmp_path) == []
