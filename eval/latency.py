"""Latency of one denoiser call and of a whole sampling run, all subjects interleaved in one process.

Two timings from two processes cannot be divided: clocks, caches and neighbours differ. So each round times every
subject once, one after the other (A B C, B C A, C A B, …: each is first equally often), and the speed-up is the
median over rounds of (reference's time / subject's time in the same round). The clock is that of
`torch.utils.benchmark`, which waits for the accelerator. While it runs, the heap keeps its pages (`eval.steady`).

This compares subjects with each other and is observed of none alone, so it is measured anew for every set of subjects.
"""

from __future__ import annotations

import math
import platform
import re
import statistics
import timeit
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import get_parameter_device, get_parameter_dtype

from eval.intervals import median_interval
from eval.observation import Seen
from eval.steady import steady_heap
from eval.types import Context

NEEDS = ("predict", "call", "latency", "model")
MIN_RUN_S = 0.05  # least time of one timed block of calls, in seconds
Predict = Callable[[Mapping[str, Any]], Any]
WARMUP = 2  # untimed calls of every subject before the first round


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    min_run_s: float = MIN_RUN_S,
    warmup: int,
    num_threads: int,
    clock: Callable[[], float] | None = None,
    progress: Callable[[int], None] = lambda done: None,
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
        clock: Returns seconds; None takes that of torch, which synchronises the accelerator first.
        progress: Called with the number of rounds done.
    """
    if clock is None:
        from torch.utils.benchmark import timer as clock  # slow to import, and it warns of a missing compiler
    timers = {name: timeit.Timer(run, timer=clock) for name, run in runs.items()}
    names, threads = list(runs), torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in names}
    torch.set_num_threads(num_threads)
    try:
        with steady_heap():
            warm = {name: timer.repeat(warmup, number=1) for name, timer in timers.items()}
            number = {name: max(1, math.ceil(min_run_s / s[-1])) if s else 1 for name, s in warm.items()}
            for index in range(rounds):
                first = index % len(names)
                for name in names[first:] + names[:first]:
                    if number[name] > 1:
                        timers[name].timeit(1)
                    times[name].append(timers[name].timeit(number[name]) / number[name])
                progress(index + 1)
    finally:
        torch.set_num_threads(threads)
    return times


def summary(times: list[float], images: int) -> dict[str, Any]:
    """Return median, interquartile range and spread of times in seconds; `images` are made in one run."""
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
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
        text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
        model = re.search(r"^model name\s*:(.*)$", text, re.MULTILINE)
        return model[1].strip() if model else platform.processor() or platform.machine()
    return device.type


@torch.no_grad()
def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the latency of a call and of a sampling run, and the speed-ups to the reference.

    Sampling is skipped (None) if the options say so or a subject has no sample function.
    """
    assert context.call is not None
    assert context.latency is not None
    options, subjects = context.latency, context.subjects
    call, ids = context.call(options.batch_size), torch.arange(options.batch_size)
    calls = {name: partial(s.predict, call) for name, s in subjects.items() if s.predict is not None}
    results = _timed(context, "call", calls, rounds=options.rounds, warmup=WARMUP)
    samplers = {name: partial(s.sample, ids) for name, s in subjects.items() if s.sample is not None}
    if options.sampling_rounds and len(samplers) == len(subjects):
        for sample in samplers.values():
            sample.func(ids[:1])  # loads what is loaded at first use
        sampling = _timed(context, "sampling", samplers, rounds=options.sampling_rounds, warmup=0)
    else:
        keys = ("sampling", "speedup_sampling", "speedup_sampling_ci95", "speedup_sampling_coverage")
        sampling = {name: dict.fromkeys(keys) for name in subjects}
    rows = _rows(context)
    return {
        name: results[name] | sampling[name] | ({"latency_rows": rows[name]} if rows else {})
        for name in subjects
    }


def _rows(context: Context) -> dict[str, list[dict[str, Any]]]:
    """Return by subject one row for each mode and batch size that is asked beside an eager call of `batch_size`.

    A row has ``mode``, ``batch_size`` and ``skipped``, why it was not measured (None if it was), else what `summary`
    says and the speed-up to the reference in the same mode.
    """
    options, subjects = context.latency, context.subjects
    assert options is not None
    assert context.call is not None
    asked = [(mode, size) for mode in options.modes for size in (options.batch_size, *options.batch_sizes)]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects} if asked else {}
    not_here: set[str] = set()
    for mode, size in dict.fromkeys(asked):
        if (mode, size) == ("eager", options.batch_size) or mode in not_here:
            continue
        call, runs, why = context.call(size), {}, None
        for name, subject in subjects.items():
            assert subject.predict is not None
            assert subject.model is not None
            try:
                runs[name] = MODES[mode](subject.predict, call, get_parameter_device(subject.model))
            except Exception as error:  # compilers fail in any way; the other rows stand
                why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                if isinstance(error, NotHere):  # then for no size, which one row says
                    why = str(error)
                    not_here.add(mode)
                break
        row = {"mode": mode, "batch_size": size, "skipped": why}
        if why is None:
            found = _timed(context, "call", runs, rounds=options.rounds, warmup=WARMUP, batch_size=size)
            for name, values in found.items():
                rows[name].append(row | values.pop("call") | {"skipped": None} | values)
        else:
            for own in rows.values():
                own.append(row)
        if mode == "compiled":
            torch.compiler.reset()  # what was compiled holds the models
    return rows if any(rows.values()) else {}


class NotHere(Exception):
    """A mode that this machine cannot run; the text says why."""


def _eager(predict: Predict, call: Mapping[str, Any], device: torch.device) -> Callable[[], Any]:
    return partial(predict, call)


def _compiled(predict: Predict, call: Mapping[str, Any], device: torch.device) -> Callable[[], Any]:
    """Return the call compiled by `torch.compile` for these shapes, after a first run, which compiles it."""
    run = partial(torch.compile(predict, dynamic=False), call)
    run()
    return run


def _cuda_graphs(predict: Predict, call: Mapping[str, Any], device: torch.device) -> Callable[[], Any]:
    """Return the call as a CUDA graph, which the GPU runs without the CPU; arguments stay where they are."""
    if device.type != "cuda":
        raise NotHere(f"CUDA graphs need a CUDA GPU, and the models are on {device.type}")
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):  # capturing must not meet first calls of libraries
        for _ in range(3):
            predict(call)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        predict(call)
    return graph.replay


MODES: dict[str, Callable[[Predict, Mapping[str, Any], torch.device], Callable[[], Any]]] = {
    "eager": _eager,
    "compiled": _compiled,
    "cuda_graphs": _cuda_graphs,
}
"""How a call is made: each takes a subject's prediction and the arguments, and returns what is timed."""


def _timed(
    context: Context,
    what: str,
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int,
    batch_size: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Time one kind of run of every subject and return its numbers, with the circumstances recorded."""
    options = context.latency
    assert options is not None
    size, threads = batch_size or options.batch_size, options.num_threads or torch.get_num_threads()
    times = interleave(
        runs,
        rounds=rounds,
        warmup=warmup,
        num_threads=threads,
        progress=lambda done: context.progress(f"latency, {what}", done, rounds),
    )
    results: dict[str, dict[str, Any]] = {}
    for name, values in times.items():
        model = context.subjects[name].model
        assert model is not None
        ratio, interval, coverage = speedup(times[context.reference], values)
        results[name] = {
            what: summary(values, size)
            | {
                "batch_size": size,
                "num_threads": threads,
                "dtype": str(get_parameter_dtype(model)).removeprefix("torch."),
                "device": device_name(get_parameter_device(model)),
                "warmup": warmup,
            },
            f"speedup_{what}": ratio,
            f"speedup_{what}_ci95": interval,
            f"speedup_{what}_coverage": coverage,
        }
    return results
