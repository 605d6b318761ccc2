"""Recorded calls of tiny pipelines on a device: do they replay, and what do a cut and a training from them do?

Each tiny pipeline (`tests/pipelines`) is moved to the device in a type, recorded, read back, cut and trained:

    python -m scripts.bench_recorded [--device cuda] [--pipelines flux,z-image,…] [--out FILE]

A line of JSON a pipeline and type, the last line sums up.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import pruning as sp
from pruning.calibration.driver import prediction
from pruning.data import NoisedBatches
from pruning.groups import find_groups
from pruning.models.outputs import joined, with_tuple
from pruning.recording import RecordedCalls, record, recorded_batches
from pruning.recording.axes import cut
from pruning.recording.runs import Runs
from pruning.recording.watching import Watch
from pruning.recovery import recover_recorded
from pruning.settings import Recover
from tests.pipelines import PIPELINES, TinyPipeline

TOYS = ("flux", "z-image", "qwen-image", "wan-two-experts", "pixart-sigma", "sdxl")
"""The pipelines that are named in the description of the work on recorded calls."""

KINDS = ("attention_heads", "ffn_channels", "resnet_channels")
NOUNS = [
    f"{size} {noun} in {place}"
    for size in ("a small", "one large", "an old", "some red")
    for noun in ("fox", "boat", "house", "tree")
    for place in ("rain", "snow")
]
TRAINED, HELD_OUT = range(24), range(24, 32)
STEPS, RATES = 150, (1e-3, 2e-4, 2e-5)


def main() -> None:
    """Check the pipelines that are asked for, in float32 and in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pipelines", default=",".join(TOYS))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("diffusers", "transformers", "pruning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    found = []
    for name in asked.pipelines.split(","):
        for dtype in asked.dtypes.split(","):
            for entry in check(name, getattr(torch, dtype), asked.device, asked.steps):
                found.append(entry)
                print(json.dumps(entry), flush=True)
    trained = [entry for entry in found if "after" in entry]
    summed = {
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else asked.device,
        "torch": torch.__version__,
        "checked": len(found),
        "replay": max(entry["replay"] for entry in found),
        "proven": sum(entry["target"] is not None for entry in found),
        "trained": len(trained),
        "trained_better": sum(entry["after"] < entry["before"] for entry in trained),
    }
    if asked.out:
        with open(asked.out, "w", encoding="utf-8") as file:
            json.dump({**summed, "entries": found}, file, indent=1)
            file.write("\n")
    print(json.dumps(summed))


def check(name: str, dtype: torch.dtype, device: str, steps: int) -> list[dict[str, Any]]:
    """Record, replay, cut and train one tiny pipeline; one entry a denoiser."""
    tiny = PIPELINES[name]
    pipeline: Any = tiny.build()
    pipeline.to(device, dtype)
    (argument,) = tiny.inputs[0]
    entries = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        inputs = [{argument: text} for text in NOUNS]
        calls = record(pipeline, inputs, folder, call=tiny.call, points=4)
        seconds = time.perf_counter() - began
        target = calls.head.target
        for part in calls.denoisers:
            dense = pipeline.components[part]
            entry = {
                "pipeline": name,
                "denoiser": part,
                "dtype": str(dtype)[6:],
                "record_seconds": round(seconds, 2),
                "bytes": calls.head.bytes,
                "target": None if target is None else target.kind,
                "replay": replay(pipeline, tiny, calls, part, device),
            }
            if dtype == torch.float32:
                entry |= cut_and_train(dense, calls, part, device, steps)
            entries.append(entry)
    return entries


def replay(pipeline: Any, tiny: TinyPipeline, calls: RecordedCalls, part: str, device: str) -> float:
    """Return how far the answers to the first sample's rows, read from disk, are from those in its pipeline, relative.

    Rows of one call go together, as they did there.
    """
    (argument,) = tiny.inputs[0]
    runs = Runs(pipeline, [{argument: NOUNS[0]}], tiny.call, 0)
    model, outputs, worst = pipeline.components[part], calls.head.denoisers[part].outputs, 0.0
    steps = runs.run(0, Watch(calls.denoisers, outputs=True))
    rows = [row for row in calls.of(part) if row.sample == 0]
    for step, number in sorted({(row.step, row.call) for row in rows}):
        together = [row for row in rows if (row.step, row.call) == (step, number)]
        answer = steps[step].calls[number].output
        for branch, row in enumerate(together):
            with torch.no_grad():
                read = joined(model(**with_tuple(model, calls.call([row], device=device))), 1).double()
            there = joined(cut(answer, outputs, len(together), branch), 1).double().to(device)
            worst = max(worst, float((read - there).norm() / there.norm()))
    return worst


def cut_and_train(dense: Any, calls: RecordedCalls, part: str, device: str, steps: int) -> Mapping[str, Any]:
    """Cut 30 % of the prunable parameters with least squares, train back; return the errors on held-out samples.

    The largest rate of learning that ends below where it began is taken; these nets are random, and cutting some costs
    next to nothing.
    """
    how: dict[str, Any] = {
        "denoiser": part,
        "batch_size": 16,
        "timestep_buckets": min(4, calls.steps),
        "device": device,
    }
    shown = recorded_batches(calls, samples=TRAINED, **how)
    held_out = recorded_batches(calls, samples=HELD_OUT, **how)
    groups = find_groups(dense, [kind for kind in KINDS if any(g.kind == kind for g in find_groups(dense))])
    stats = sp.calibrate(dense, groups, shown, for_=("probe_obs", "least_squares"))
    plan = sp.allocate(dense, groups, sp.score(dense, groups, stats, criterion="probe_obs"), ratio=0.3)
    pruned = copy.deepcopy(dense)
    sp.compensate(pruned, groups, plan, stats, "least_squares")
    sp.apply_plan(pruned, plan)
    before = error(pruned, dense, held_out)
    for rate in RATES:
        slim, began = copy.deepcopy(pruned), time.perf_counter()
        settings = Recover(steps=steps, batch_size=16, learning_rate=rate, ema_decay=0.98)
        recover_recorded(slim, dense, calls, settings, denoiser=part, samples=TRAINED, device=device)
        after = error(slim, dense, held_out)
        if after < before:
            break
    return {
        "before": before,
        "after": after,
        "rate": rate,
        "train_seconds": round(time.perf_counter() - began, 1),
    }


def error(model: nn.Module, dense: nn.Module, batches: NoisedBatches) -> float:
    """Return the squared distance of the answers to those of the dense model, relative."""
    change = power = 0.0
    with torch.no_grad():
        for batch in batches:
            ours, theirs = prediction(model, batch).double(), prediction(dense, batch).double()
            change += float((ours - theirs).square().sum())
            power += float(theirs.square().sum())
    return change / power


if __name__ == "__main__":
    main()
