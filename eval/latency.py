"""Latency of one denoiser call and of a whole sampling run, all subjects interleaved in one process.

Two timings from two processes cannot be divided: clocks, caches and neighbours differ. So each round times every
subject once, one after the other (A B C, B C A, C A B, …: each is first equally often), and the speed-up is the
median over rounds of (reference's time / subject's time in the same round). The clock is that of
`torch.utils.benchmark`, which waits for the accelerator.

This compares subjects with each other and is observed of none alone, so it is measured anew for every set of subjects.
"""

from __future__ import annotations

import logging
import math
import platform
import statistics
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import benchmark

from eval.intervals import median_interval
from eval.observation import Seen
from eval.types import Context, LatencyOptions

NEEDS = ("predict", "call", "model")

logger = logging.getLogger(__name__)


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    min_run_s: float,
    warmup: int,
    num_threads: int,
    clock: Callable[[], float] = benchmark.timer,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Time several statements in turn and return the seconds of one run, one value per round.

    Runs shorter than `min_run_s` are repeated to fill a block of that length; such a block begins with an untimed run,
    which brings back the caches that the others have taken. For one long run they do not count.

    Args:
        runs: What to time, by name.
        rounds: How often each is timed.
        min_run_s: Least time of a timed block, in seconds, judged by the last untimed run.
        warmup: Untimed runs of each before the first round; without any, blocks are single runs.
        num_threads: CPU threads while timing; restored afterwards.
        clock: Returns seconds; the default synchronises the accelerator first.
        progress: Called with the number of rounds done.
    """
    timers = {name: timeit.Timer(run, timer=clock) for name, run in runs.items()}
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    with _threads(num_threads):
        warm = {name: timer.repeat(warmup, number=1) for name, timer in timers.items()}
        number = {name: max(1, math.ceil(min_run_s / s[-1])) if s else 1 for name, s in warm.items()}
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                if number[name] > 1:
                    timers[name].timeit(1)
                times[name].append(timers[name].timeit(number[name]) / number[name])
            if progress is not None:
                progress(index + 1)
    return times


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def summary(times: list[float], images: int) -> dict[str, Any]:
    """Return median, interquartile range and spread of times in seconds; `images` are made in one run."""
    quartiles = torch.tensor(times, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    low, median, high = quartiles.tolist()
    return {
        "median_s": median,
        "iqr_s": high - low,
        "spread": (high - low) / median,
        "min_s": min(times),
        "max_s": max(times),
        "runs": len(times),
        "images_per_s": images / median,
    }


def speedup(reference: list[float], times: list[float]) -> tuple[float, list[float], float]:
    """Return the median over rounds of reference / times, its interval and the coverage of that interval."""
    ratios = [a / b for a, b in zip(reference, times, strict=True)]
    interval, coverage = median_interval(ratios)
    return statistics.median(ratios), interval, coverage


def device_name(device: torch.device) -> str:
    """Return the name of the processor behind `device`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        lines = (
            cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
        )
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return models[0] if models else platform.processor() or platform.machine()
    return device.type


@torch.no_grad()
def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the latency of a call and of a sampling run, and the speed-ups to the reference.

    Sampling is skipped (None) if the options say so or a subject has no sample function.
    """
    assert context.call is not None
    options = context.latency
    threads = options.num_threads or torch.get_num_threads()
    call = context.call(options.batch_size)
    predictors = {
        name: subject.predict for name, subject in context.subjects.items() if subject.predict is not None
    }
    times = interleave(
        {name: lambda predict=predict: predict(call) for name, predict in predictors.items()},
        rounds=options.rounds,
        min_run_s=options.min_run_s,
        warmup=options.warmup,
        num_threads=threads,
        progress=lambda done: context.report_progress("latency of a call", done, options.rounds),
    )
    results = _results(context, "call", times, options.batch_size, threads)
    sampling = _time_sampling(context, options, threads)
    for name, result in results.items():
        result |= sampling[name]
    return results


def _time_sampling(context: Context, options: LatencyOptions, threads: int) -> dict[str, dict[str, Any]]:
    """Time whole sampling runs, if asked and possible."""
    samplers = {
        name: subject.sample for name, subject in context.subjects.items() if subject.sample is not None
    }
    if not options.sampling or len(samplers) < len(context.subjects):
        if options.sampling:
            logger.info("sampling is not timed: %s", sorted(set(context.subjects) - set(samplers)))
        keys = ("sampling", "speedup_sampling", "speedup_sampling_ci95", "speedup_sampling_coverage")
        return {name: dict.fromkeys(keys) for name in context.subjects}
    ids = torch.arange(options.sampling_batch_size)
    for sample in samplers.values():
        sample(ids[:1])  # loads what is loaded at first use
    times = interleave(
        {name: lambda sample=sample: sample(ids) for name, sample in samplers.items()},
        rounds=options.sampling_rounds,
        min_run_s=0.0,
        warmup=0,
        num_threads=threads,
        progress=lambda done: context.report_progress("latency of sampling", done, options.sampling_rounds),
    )
    return _results(context, "sampling", times, options.sampling_batch_size, threads)


def _results(
    context: Context, what: str, times: dict[str, list[float]], batch_size: int, threads: int
) -> dict[str, dict[str, Any]]:
    """Return the numbers of one kind of run by subject, with the circumstances recorded."""
    reference = times[context.reference.name]
    results: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        model = context.subjects[name].model
        assert model is not None
        parameter = next(model.parameters())
        ratio, interval, coverage = speedup(reference, values)
        results[name] = {
            what: summary(values, batch_size)
            | {
                "batch_size": batch_size,
                "num_threads": threads,
                "dtype": str(parameter.dtype).removeprefix("torch."),
                "device": device_name(parameter.device),
                "warmup": context.latency.warmup,
            },
            f"speedup_{what}": ratio,
            f"speedup_{what}_ci95": interval,
            f"speedup_{what}_coverage": coverage,
        }
    return results
