"""Time calibration with the default criterion against the plain forward passes that it needs, on the CPU.

    python scripts/bench_default.py [--rounds 5] [--samples 64] [--threads 1] [--out FILE]

The embedded DiT and UNet see the same noised digits at 8 timesteps: plain, without gradients, once as a pass; and as
each criterion's calibration needs them, least squares included. The arm ``+ report`` also gathers what the report
draws, as a recipe does unless ``calibrate.diagnostics`` is off. The arms take turns in an order that turns from
round to round, and a ratio is the median over rounds of an arm's time to the plain passes of the same round, as
many as the calibration made (a calibration that centres with means, or weighs by sinks, sees everything twice).
Bar: at most 2 where no gradient is taken, at most 3 where there is one.

Memory, of the default: the bytes of the sums that stay; those of the attention maps of one batch of 8, of all layers,
by arithmetic; and the peak of what one calibration of 8 samples allocates, from the profiler's allocation events,
beside that of its plain passes. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench_calibration import conclude, peak_bytes

from pruning.calibration import calibrate
from pruning.calibration.attention.capture import AttentionCapture
from pruning.groups import find_groups
from pruning.importance import CRITERIA, DIAGNOSTIC_NEEDS, needs_of
from pruning.interface import noised_batches
from pruning.models import denoise, load_denoiser, load_scheduler, resolve_source
from pruning.settings import Score
from pruning.stages.calibration import DRAWN
from pruning.surgery import compensation_needs
from pruning.types import CalibrationStats

MODELS = ("digits-dit", "digits-unet")
DEFAULT = Score().criterion
REPORT = " + report"
ARMS = (DEFAULT, "obs", "sink", DEFAULT + REPORT)
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
        self.groups = find_groups(self.model, KINDS)
        made = noised_batches(
            self.model,
            load_scheduler(folder),
            "digits",
            samples=samples,
            batch_size=min(BATCH, samples),
            timestep_buckets=BUCKETS,
        )
        self.batches = list(made)
        self.source = replace(made, make=lambda: self.batches)
        self.forwards = self.with_gradients = 0
        self.model.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.forwards += 1
        self.with_gradients += torch.is_grad_enabled()

    @torch.no_grad()
    def plain(self) -> None:
        """Run the model over the batches once, without gradients."""
        for batch in self.batches:
            denoise(self.model, batch.call)

    def calibrated(self, arm: str) -> Callable[[], CalibrationStats]:
        """Return a function that gathers what a criterion and least squares read, and the report if the arm says so."""
        criterion = arm.removesuffix(REPORT)
        needs = needs_of(criterion, self.groups) | compensation_needs("least_squares")
        needs |= DIAGNOSTIC_NEEDS | DRAWN if arm.endswith(REPORT) else set()
        variants = sorted({CRITERIA[criterion].weighting} - {"off"})
        return lambda: calibrate(self.model, self.groups, self.source, needs=sorted(needs), variants=variants)

    def passes(self, run: Callable[[], object]) -> tuple[float, float]:
        """Return how many passes over the batches `run` makes, and how many of them with gradients."""
        self.forwards = self.with_gradients = 0
        run()
        return self.forwards / len(self.batches), self.with_gradients / len(self.batches)

    def attention_bytes(self) -> int:
        """Return the bytes of the attention maps of the first batch, all layers together, in float32."""
        shapes: list[int] = []
        sites = sorted({group.module for group in self.groups if group.kind == "attention_heads"})
        with (
            torch.no_grad(),
            AttentionCapture(
                self.model, sites, lambda call: shapes.append(call.query[..., 0].numel() * call.key.shape[-2])
            ),
        ):
            denoise(self.model, self.batches[0].call)
        return 4 * sum(shapes)


def seconds(run: Callable[[], object]) -> float:
    """Return how long `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_time(subject: Subject, rounds: int) -> dict[str, dict[str, Any]]:
    """Time the arms in turn; return by arm its ratio, the ratios of the rounds and the passes."""
    arms: dict[str, Callable[[], object]] = {name: subject.calibrated(name) for name in ARMS}
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
    for name in ARMS:
        count, with_gradients = passes[name]
        ratios = [ours / (count * plain) for ours, plain in zip(times[name], times["plain"], strict=True)]
        found[name] = {
            "ratio": statistics.median(ratios),
            "ratio_rounds": [round(ratio, 3) for ratio in ratios],
            "passes": count,
            "passes_with_gradients": with_gradients,
            "seconds": statistics.median(times[name]),
            "plain_pass_seconds": statistics.median(times["plain"]),
        }
    return found


def measure_memory(name: str) -> dict[str, Any]:
    """Return bytes: of the sums that stay, of whole attention maps, and peaks of a calibration and of plain passes."""
    subject = Subject(name, 8)
    run = subject.calibrated(DEFAULT)
    stats = run()
    kept = sum(v.numel() * v.element_size() for found in stats.values.values() for v in found.values())
    return {
        "kept_bytes": kept,
        "attention_map_bytes": subject.attention_bytes(),
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
    result: dict[str, Any] = {"default": DEFAULT, "models": {}}
    for name in MODELS:
        print(name)
        found = measure_time(Subject(name, args.samples), args.rounds)
        memory = measure_memory(name)
        result["models"][name] = {"criteria": found, "memory": memory}
        for arm, one in found.items():
            bar = 3 if one["passes_with_gradients"] else 2
            print(
                f"  {arm:<20}{one['ratio']:.2f} times its {one['passes']:.0f} plain passes, "
                f"{one['passes_with_gradients']:.0f} of them with gradients (rounds {one['ratio_rounds']}; bar {bar})"
            )
        print(
            f"  memory: {memory['peak_bytes']:,} bytes at the peak, {memory['peak_bytes_plain']:,} plain; sums "
            f"{memory['kept_bytes']:,}; attention maps of a batch {memory['attention_map_bytes']:,}"
        )
    result |= {
        "samples": args.samples,
        "timesteps": BUCKETS,
        "batch": min(BATCH, args.samples),
        "rounds": args.rounds,
    }
    conclude(result, args.out)


if __name__ == "__main__":
    main()
