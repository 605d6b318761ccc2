"""Time calibration with the default criterion against the plain forward passes that it needs, on the CPU.

    python scripts/bench_default.py [--rounds 5] [--samples 64] [--threads 1] [--out FILE]

The embedded DiT and UNet see the same noised digits at 8 timesteps: plain, without gradients, once as a pass; and as
each criterion's calibration needs them, least squares included. The arms take turns in an order that turns from
round to round, and a ratio is the median over rounds of an arm's time to the plain passes of the same round, as
many as the calibration made (a calibration that centres with means, or weighs by sinks, sees everything twice).
Bar: at most 2 where no gradient is taken, at most 3 where there is one.

Memory: the bytes of the sums that stay, and of the whole attention maps that they stand for, by arithmetic; and the
peak of what one calibration of 8 samples allocates, from the profiler's allocation events, beside that of its plain
passes. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_calibration import peak_bytes

from pruning.calibration import calibrate
from pruning.data import NoisedBatch, conditioner, noised_batches, num_train_timesteps, open_images
from pruning.groups import find_groups
from pruning.importance import CRITERIA, needs_of
from pruning.models import denoise, load_denoiser, load_scheduler, resolve_source, sample_shape
from pruning.recipe.schema import Score
from pruning.surgery import compensation_needs
from pruning.types import CalibrationStats

MODELS = ("digits-dit", "digits-unet")
CRITERIA_TIMED = (Score().criterion, "obs", "sink")
BUCKETS = 8
BATCH = 64  # as in the recipes
KINDS = ("attention_heads", "ffn_channels", "resnet_channels")


class Subject:
    """A model with noised digits, held in memory, and ways to look at them.

    Args:
        name: Of an embedded model.
        samples: Digits, each at every timestep.
    """

    def __init__(self, name: str, samples: int) -> None:
        folder = resolve_source(f"bundled:models/{name}")
        self.model: Any = load_denoiser(folder)
        self.scheduler = load_scheduler(folder)
        self.groups = find_groups(self.model, KINDS)
        channels, size, _ = sample_shape(self.model)
        data = open_images("digits", split="train", channels=channels, resolution=size)
        self.batches: list[NoisedBatch] = list(
            noised_batches(
                data,
                conditioner(self.model, None),
                self.scheduler,
                indices=range(samples),
                batch_size=min(BATCH, samples),
                timestep_buckets=BUCKETS,
                seed=0,
            )
        )
        self.forwards = 0
        self.model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    @torch.no_grad()
    def plain(self) -> None:
        """Run the model over the batches once, without gradients."""
        for batch in self.batches:
            denoise(self.model, batch.call)

    def calibrated(self, criterion: str) -> Callable[[], CalibrationStats]:
        """Return a function that gathers what a criterion and least squares read."""
        needs = needs_of(criterion, self.groups) | compensation_needs("least_squares")
        variants = sorted({CRITERIA[criterion].omega} - {"off"})
        return lambda: calibrate(
            self.model,
            self.groups,
            lambda: self.batches,
            needs=sorted(needs),
            variants=variants,
            num_train_timesteps=num_train_timesteps(self.scheduler),
            timestep_buckets=BUCKETS,
        )

    def passes(self, run: Callable[[], object]) -> float:
        """Return how many passes over the batches `run` makes."""
        before = self.forwards
        run()
        return (self.forwards - before) / len(self.batches)


def seconds(run: Callable[[], object]) -> float:
    """Return how long `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_time(subject: Subject, rounds: int) -> dict[str, dict[str, Any]]:
    """Time the arms in turn; return by criterion its ratio, the ratios of the rounds and the passes."""
    arms: dict[str, Callable[[], object]] = {name: subject.calibrated(name) for name in CRITERIA_TIMED}
    passes = {name: subject.passes(run) for name, run in arms.items()}  # and a warm-up
    arms["plain"] = subject.plain
    subject.plain()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        order = list(arms)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            times[name].append(seconds(arms[name]))
        print(
            f"round {turn + 1}: " + ", ".join(f"{name} {t[-1]:.2f} s" for name, t in times.items()),
            flush=True,
        )
    found = {}
    for name in CRITERIA_TIMED:
        ratios = [
            ours / (passes[name] * plain) for ours, plain in zip(times[name], times["plain"], strict=True)
        ]
        found[name] = {
            "ratio": statistics.median(ratios),
            "ratio_rounds": [round(ratio, 3) for ratio in ratios],
            "passes": passes[name],
            "gradients": with_gradients(name),
            "seconds": statistics.median(times[name]),
            "plain_pass_seconds": statistics.median(times["plain"]),
        }
    return found


def with_gradients(criterion: str) -> bool:
    """Tell whether a criterion reads statistics of gradients."""
    entry = CRITERIA[criterion]
    named = {"probe", "probe_diag", "taylor", "output_sensitivity", "diff_pruning"} & entry.needs
    return bool(named) or (entry.base is not None and with_gradients(entry.base))


def measure_memory(name: str) -> dict[str, Any]:
    """Return bytes: of the sums that stay, of whole attention maps, and peaks of a calibration and of plain passes."""
    subject = Subject(name, 8)
    run = subject.calibrated(CRITERIA_TIMED[0])
    stats = run()
    kept = sum(v.numel() * v.element_size() for found in stats.values.values() for v in found.values())
    return {
        "kept_bytes": kept,
        "peak_bytes": peak_bytes(run),
        "peak_bytes_plain": peak_bytes(subject.plain),
    }


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64, help="digits, each at 8 timesteps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"default": CRITERIA_TIMED[0], "models": {}}
    for name in MODELS:
        print(name)
        found = measure_time(Subject(name, args.samples), args.rounds)
        result["models"][name] = {"criteria": found, "memory": measure_memory(name)}
        for criterion, one in found.items():
            bar = 3 if one["gradients"] else 2
            print(
                f"  {criterion:<12}{one['ratio']:.2f} times its {one['passes']:.0f} plain passes "
                f"(rounds {one['ratio_rounds']}; bar {bar})"
            )
    result |= {
        "samples": args.samples,
        "timesteps": BUCKETS,
        "batch": BATCH,
        "rounds": args.rounds,
        "device": "cpu",
        "dtype": "float32",
        "threads": args.threads,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    line = json.dumps(result)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
