"""Kill -9 at random moments, resume each time: the result is that of the undisturbed run. And two processes are as one.

    python scripts/check_kills.py [--kills 20] [--seed 0] [--fork] [--keep FOLDER] [--out docs/benchmarks/kills.json]

A small recipe on the bundled digits model runs once undisturbed. Then it runs in another folder with another store, and
is killed again and again, each time at a random moment after it began its work. Whenever it comes to its end, and after
the last kill, it is compared bit by bit: the weights after recovery and what was exported, the plan and the scores, and
what the models sampled. At last two processes of one launch train on the same batches, and their weights are compared
with those of one. With --keep the same command goes on where it was stopped. With --fork what is killed is a fork of
this process, which has imported what it needs: on a busy machine imports take most of the time. The last line is JSON
with `kills`, `equal` and `two_processes`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

RECIPE = (
    "quickstart",
    "device=cpu",
    "calibrate.num_samples=16",
    "calibrate.batch_size=8",
    "recover.steps=60",
    "recover.batch_size=8",
    "recover.checkpoint_every=4",
    "recover.warmup_steps=2",
    "evaluate.num_samples=32",
    "evaluate.batch_size=8",
    "evaluate.num_steps=3",
    "evaluate.denoising_samples=8",
    "evaluate.latency={batch_size: 2, runs: 2, sampling_runs: 1}",
)
"""The quickstart, made small; training is the longest part and keeps many checkpoints."""

STAGES = ("calibrate", "score", "plan", "prune", "recover", "evaluate", "export", "report")

REACH = 0.5
"""Latest moment of a kill, as a share of the undisturbed run; early enough that most runs are still at work."""

COMPARED = (
    "runs/run/recover/model/*.safetensors",
    "runs/run/export/diffusers/*/*.safetensors",
    "runs/run/plan/plan.json",
    "runs/run/score/scores.safetensors",
    "runs/run/evaluate/samples.safetensors",
    "runs/.store/samples/*/samples.safetensors",
)

ROOT = str(Path(__file__).resolve().parents[1])

ALONE = ("-m", "pruning")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *ALONE)
"""The command of one process, and of two: on CPUs ``accelerate launch`` starts but one."""


class Forked:
    """A fork of this process that runs the recipe, with what is used here of `subprocess.Popen`."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(folder, arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait for its end; return its exit status."""
        self._process.join()
        return self._process.exitcode


def _run(folder: Path, arguments: Sequence[str]) -> None:
    os.setsid()
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.exit(importlib.import_module("pruning.cli").main(list(arguments)))


class Starts:
    """Starts the recipe, each time in a process of its own.

    Args:
        fork: Processes are forks of this one.
    """

    def __init__(self, fork: bool) -> None:
        self._fork = fork
        if fork:
            os.environ["OMP_NUM_THREADS"] = "1"
            sys.path.insert(0, ROOT)
            for name in ("pruning.cli.commands", "pruning.stages"):
                importlib.import_module(name)

    def __call__(
        self, folder: Path, how: Sequence[str] = ALONE, *more: str
    ) -> subprocess.Popen[bytes] | Forked:
        """Start the recipe in a folder."""
        arguments = ["run", *RECIPE, "run_dir=runs/run", *more]
        if self._fork and how == ALONE:
            return Forked(folder, arguments)
        environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *how, *arguments],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def seconds_to_end(self, folder: Path, how: Sequence[str] = ALONE, *more: str) -> float:
        """Run to the end; return the seconds that took."""
        began = time.monotonic()
        if code := self(folder, how, *more).wait():
            raise SystemExit(f"the run ended with status {code}:\n{(folder / 'log').read_text()[-3000:]}")
        return time.monotonic() - began


def hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of what is compared."""
    files = [path for pattern in COMPARED for path in sorted(folder.glob(pattern))]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def work_begins(folder: Path, process: subprocess.Popen[bytes] | Forked) -> None:
    """Wait until a started run holds its directory, so that kills do not all fall into the import of torch."""
    while process.poll() is None and holder(folder) != process.pid:
        time.sleep(0.02)


def holder(folder: Path) -> int | None:
    """Return the process whose name is in the lock of the run directory, be it alive or not."""
    try:
        return int((folder / "runs" / "run" / ".lock").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def end_left(folder: Path) -> None:
    """End what an earlier start of this script left running in a folder."""
    pid = holder(folder)
    with suppress(OSError):
        if pid and Path(f"/proc/{pid}/cwd").resolve() == folder.resolve():
            os.killpg(pid, signal.SIGKILL)


def at_work(folder: Path) -> str:
    """Return the stage that was killed, of recovery with the steps of its last checkpoint."""
    done = [name for name in STAGES if (folder / "runs" / "run" / name / "DONE").exists()]
    stage = STAGES[min(len(done), len(STAGES) - 1)]
    steps = sorted(folder.glob("runs/.store/.partial/recover-*/.scratch/checkpoints/step-*"))
    return f"recover after step {int(steps[-1].name[5:])}" if stage == "recover" and steps else stage


def differences(ours: Path, theirs: Path, before: Path) -> dict[str, Any]:
    """Return how far two folders of weights are apart.

    By tensor, the largest difference over the largest entry; biases of keys by themselves, for softmax does not depend
    on them: their gradients are what rounding leaves, and AdamW makes full steps of that. And the norm of all
    differences over the norm of what training changed.
    """
    from safetensors.torch import load_file

    a, b, start = (
        {name: tensor.double() for name, tensor in _tensors(place, load_file)}
        for place in (ours, theirs, before)
    )
    largest = {
        name: float((t - b[name]).abs().max() / t.abs().max().clamp(min=1e-12)) for name, t in a.items()
    }
    keys = {name for name in largest if name.endswith(".to_k.bias")}
    apart, moved = (
        sum(float((tensor - other[name]).square().sum()) for name, tensor in a.items())
        for other in (b, start)
    )
    return {
        "largest_relative_difference": max(value for name, value in largest.items() if name not in keys),
        "of_key_biases": max((largest[name] for name in keys), default=0.0),
        "median_relative_difference": median(largest.values()),
        "difference_by_change": (apart / moved) ** 0.5,
    }


def _tensors(folder: Path, load: Any) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.glob("*.safetensors")):
        yield from load(path).items()


class Progress:
    """What was done so far, kept in a file: another start of this script goes on from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state: dict[str, Any] = {"killed": [], "endings": [], "attempts": 0}
        if path.exists():
            self.state = json.loads(path.read_text())

    def note(self, **values: Any) -> None:
        """Set values and write everything down."""
        self.state |= values
        self._path.write_text(json.dumps(self.state))


def undisturbed(start: Starts, place: Path, progress: Progress) -> None:
    """Run once without a kill, and note what came of it."""
    if "wanted" not in progress.state:
        folder = _empty(place / "whole")
        progress.note(seconds=start.seconds_to_end(folder), wanted=hashes(folder))


def killed(start: Starts, place: Path, progress: Progress, kills: int, seed: int) -> None:
    """Run, kill and resume until there are enough kills, then to the end; compare at each end."""
    folder, state = place / "killed", progress.state
    folder.mkdir(exist_ok=True)
    end_left(folder)
    while len(state["killed"]) < kills:
        draw = random.Random(f"{seed}/{state['attempts']}")
        process = start(folder)
        work_begins(folder, process)
        time.sleep(draw.uniform(0, state["seconds"] * REACH))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            progress.note(killed=[*state["killed"], at_work(folder)], attempts=state["attempts"] + 1)
            print(f"kill {len(state['killed']):2}: {state['killed'][-1]}", flush=True)
            continue
        if process.returncode:
            raise SystemExit(f"a resumed run failed:\n{(folder / 'log').read_text()[-3000:]}")
        equal = hashes(folder) == state["wanted"]  # it came to its end: compare, and begin anew
        progress.note(endings=[*state["endings"], equal], attempts=state["attempts"] + 1)
        shutil.rmtree(folder / "runs")
    if state.get("finished") != len(state["killed"]):
        start.seconds_to_end(folder)
        left = [path.name for path in (folder / "runs" / ".store" / ".partial").iterdir() if path.is_dir()]
        progress.note(
            endings=[*state["endings"], hashes(folder) == state["wanted"]],
            left=left,
            finished=len(state["killed"]),
        )


def two_processes(start: Starts, place: Path, progress: Progress) -> None:
    """Train in two processes what one has trained, and compare."""
    if "two" not in progress.state:
        folder = _empty(place / "two")
        start.seconds_to_end(folder, TWO, "--until", "recover")
        runs = [one / "runs" / "run" for one in (place / "whole", folder)]
        if not (runs[1] / ".launch").is_dir():
            raise SystemExit("two processes were asked for, and one ran")
        ours, theirs = (run / "recover" / "model" for run in runs)
        progress.note(two=differences(ours, theirs, runs[0] / "prune" / "model"))


def _empty(folder: Path) -> Path:
    end_left(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fork", action="store_true", help="kill forks of this process, not new ones")
    parser.add_argument("--keep", type=Path, help="work here, leave everything there, and go on from there")
    parser.add_argument("--out", type=Path, help="write the last line here, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.keep or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        progress = Progress(place / "progress.json")
        start = Starts(arguments.fork)
        undisturbed(start, place, progress)
        killed(start, place, progress, arguments.kills, arguments.seed)
        two_processes(start, place, progress)
    state = progress.state
    stages = [moment.split()[0] for moment in state["killed"]]
    record = {
        "kills": len(stages),
        "equal": all(state["endings"]) and len(state["wanted"]) >= len(COMPARED),
        "ended": len(state["endings"]),
        "compared": len(state["wanted"]),
        "during": {stage: stages.count(stage) for stage in STAGES if stage in stages},
        "moments": state["killed"],
        "half_written_left": state["left"],
        "two_processes": state["two"],
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    sys.exit(0 if record["equal"] else 1)


if __name__ == "__main__":
    main()
