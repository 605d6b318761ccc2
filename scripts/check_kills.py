"""Kill -9 at random moments, resume each time: the result is that of the undisturbed run.

    python scripts/check_kills.py [--kills 20] [--seed 0] [--keep FOLDER]

A small recipe runs once undisturbed. Then it runs in another folder with another store, and is killed again and again,
each time at a random moment after it began its work. Whenever it comes to its end, and after the last kill, it is
compared bit by bit: the weights after recovery and what was exported, the plan and the scores. The last line is JSON
with `kills` and `equal`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = (
    "quickstart",
    "device=cpu",
    "calibrate.num_samples=16",
    "calibrate.batch_size=8",
    "recover.steps=40",
    "recover.batch_size=8",
    "recover.checkpoint_every=4",
    "recover.warmup_steps=2",
    "evaluate.num_samples=16",
    "evaluate.num_steps=3",
    "evaluate.denoising_samples=8",
    "evaluate.latency={batch_size: 2, runs: 2, sampling_runs: 1}",
)
"""The quickstart, made small; training is the longest part and keeps many checkpoints."""

REACH = 0.5
"""Latest moment of a kill, as a share of the undisturbed run; early enough that most runs are still at work."""

COMPARED = (
    "recover/model/*.safetensors",
    "export/diffusers/*/*.safetensors",
    "plan/plan.json",
    "score/scores.safetensors",
)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the recipe in a folder."""
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pruning", "run", *RECIPE, "run_dir=runs/run"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def seconds_to_end(folder: Path) -> float:
    """Run to the end; return the seconds that took."""
    began = time.monotonic()
    if code := start(folder).wait():
        raise SystemExit(f"the run ended with status {code}:\n{(folder / 'log').read_text()[-3000:]}")
    return time.monotonic() - began


def hashes(folder: Path) -> dict[str, str]:
    """Return the hashes of what is compared."""
    run = folder / "runs" / "run"
    files = [path for pattern in COMPARED for path in sorted(run.glob(pattern))]
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def work_begins(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a started run holds its directory, so that kills do not all fall into the import of torch."""
    while process.poll() is None and not (folder / "runs" / "run" / ".lock").exists():
        time.sleep(0.02)


def last_stage(folder: Path) -> str:
    """Return the stage that was finished last."""
    done = sorted((folder / "runs" / "run").glob("*/DONE"), key=lambda path: path.stat().st_mtime)
    return done[-1].parent.name if done else "none"


def main() -> None:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work here and leave everything there")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        whole, killed = place / "whole", place / "killed"
        for folder in (whole, killed):
            folder.mkdir(parents=True)
        seconds = seconds_to_end(whole)
        wanted, stages, endings = hashes(whole), [], []
        while len(stages) < arguments.kills:
            process = start(killed)
            work_begins(killed, process)
            time.sleep(draw.uniform(0, seconds * REACH))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                stages.append(last_stage(killed))
                print(f"kill {len(stages):2}: last stage in view {stages[-1]}", flush=True)
                continue
            endings.append(hashes(killed) == wanted)  # it came to its end: compare, and begin anew
            shutil.rmtree(killed / "runs")
        seconds_to_end(killed)
        endings.append(hashes(killed) == wanted)
        left = [path.name for path in (killed / "runs" / ".store" / ".partial").iterdir() if path.is_dir()]
        record = {
            "kills": len(stages),
            "equal": all(endings) and len(wanted) >= len(COMPARED),
            "ended": len(endings),
            "compared": len(wanted),
            "after": {stage: stages.count(stage) for stage in dict.fromkeys(stages)},
            "half_written_left": left,
        }
    print(json.dumps(record))
    sys.exit(0 if record["equal"] else 1)


if __name__ == "__main__":
    main()
