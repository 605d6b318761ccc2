"""What waiting threads cost: one call of the digits DiT by OpenMP setting, alone and beside other work.

    python scripts/bench_threads.py [--rounds 5] [--out FILE.json]

Every setting is timed in a fresh process, for OpenMP reads it once; settings take turns within a round, so that a
drift of the machine meets all alike. Load is one busy process per core. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
OURS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BATCH, CALLS = 32, 8

CALL = f"""
import json, statistics, time
import torch
from pruning.models import denoise, example_call, load_denoiser, resolve_source

model = load_denoiser(resolve_source("bundled:models/digits-dit"))
call = example_call(model, {BATCH})
seconds = []
with torch.no_grad():
    denoise(model, call)
    for _ in range({CALLS}):
        began = time.perf_counter()
        denoise(model, call)
        seconds.append(time.perf_counter() - began)
print(json.dumps(statistics.median(seconds)))
"""
BUSY = "while True: pass"


def one(setting: dict[str, str]) -> float:
    """Return the median seconds of a call in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in OURS} | setting
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def measure(rounds: int, load: int) -> dict[str, list[float]]:
    """Return the seconds of every setting by round, beside `load` busy processes."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(load)]
    try:
        found: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for turn in range(rounds):
            names = list(SETTINGS)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found[name].append(one(SETTINGS[name]))
        return found
    finally:
        for process in busy:
            process.kill()


def main() -> None:
    """Measure, print a table, and JSON as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    seconds = {"alone": measure(arguments.rounds, 0), "beside load": measure(arguments.rounds, cores)}
    print(f"{'setting':26} {'alone':>22} {'beside ' + str(cores) + ' busy processes':>28}")
    for name in SETTINGS:
        cells = []
        for where in seconds:
            values = seconds[where][name]
            cells.append(f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"{name:26} {cells[0]:>22} {cells[1]:>28}")
    record = {
        "batch": BATCH,
        "cores": cores,
        "machine": platform.machine(),
        "rounds": arguments.rounds,
        "seconds": seconds,
    }
    line = json.dumps(record)
    if arguments.out:
        arguments.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
