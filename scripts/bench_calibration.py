"""Time the sink statistics of calibration against the plain forward of the SD1.5 UNet, on CPU.

    python scripts/bench_calibration.py [--repeats 5] [--batch 1] [--queries 64] [--out FILE]

One whole UNet forward at 64 x 64 latents (self-attention over 4096, 1024, 256 and 64 tokens, cross-attention over 77
text tokens; random weights, whose values do not matter) is timed plain, with all sink statistics of all 32
attention modules gathered from sampled queries, and with all queries (exact). The three alternate, in an order
that turns from round to round; an overhead is the median over rounds of the ratio to the plain forward of the same
round, less one. Beside it stand two measurements of the same thing that a busy machine disturbs less: the ratio of
the processor times, and the share of the forward's own time that was spent inside the statistics.

The naive way (the whole softmax map, then its column mean) is timed on the attention of 4096 tokens, five times a
forward. Memory is what the statistics of one such attention allocate at their peak, from the profiler's allocation
events, plus the sums that stay. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pruning.calibration import Calibrator, find  # noqa: E402
from pruning.calibration.attention.reading import Reading, Readings  # noqa: E402
from pruning.calibration.attention.softmax import AttentionCall  # noqa: E402
from pruning.calibration.draws import subset  # noqa: E402
from pruning.calibration.seeing import Site  # noqa: E402
from pruning.groups import find_groups  # noqa: E402
from pruning.settings import Calibrate, SinkWeights  # noqa: E402

NEEDS = ("key_mass", "sink_mass", "max_key_mass", "sink_indicator")
QUERIES = 64
HEADS, TOKENS, WIDTH, LAYERS = 8, 4096, 40, 5
"""The self-attentions at 64 x 64 of SD1.5: two on the way down, three on the way up."""


def build() -> Any:
    """Return the UNet of Stable Diffusion 1.5 (859,520,964 parameters) with random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval()


def inputs(batch: int) -> dict[str, Any]:
    """Return one call at 64 x 64 latents."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 4, 64, 64, generator=generator),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": torch.randn(batch, 77, 768, generator=generator),
    }


class Clock:
    """Adds up the seconds spent in a function."""

    seconds = 0.0

    def timed(self, function: Callable[..., None]) -> Callable[..., None]:
        """Return `function` with its time taken."""

        def run(*args: Any) -> None:
            start = time.perf_counter()
            function(*args)
            self.seconds += time.perf_counter() - start

        return run


def measure_forwards(repeats: int, batch: int, queries: int) -> dict[str, Any]:
    """Time plain, sampled and exact forwards in turn."""
    model, call = build(), inputs(batch)
    groups = find_groups(model, ["attention_heads"])

    def plain() -> float:
        model(**call)
        return 0.0

    def calibrated(count: int | None) -> Callable[[], float]:
        settings = Calibrate(queries=count)
        calibrator = Calibrator(model, groups, needs=NEEDS, num_train_timesteps=1000, settings=settings)

        def run() -> float:
            clock = Clock()
            with mock.patch.object(Readings, "_read", clock.timed(Readings._read)), calibrator:
                model(**call)
            return clock.seconds

        return run

    arms = {"plain": plain, "sampled": calibrated(queries), "exact": calibrated(None)}
    rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in arms}
    with torch.no_grad():
        for name in arms:  # warm-up
            arms[name]()
        for turn in range(repeats):
            order = list(arms)
            for name in order[turn % 3 :] + order[: turn % 3]:
                wall, processor = time.perf_counter(), time.process_time()
                inside = arms[name]()
                wall, processor = time.perf_counter() - wall, time.process_time() - processor
                rounds[name].append((wall, processor, inside / (wall - inside)))
            seconds = ", ".join(f"{name} {rounds[name][-1][0]:.2f} s" for name in arms)
            print(f"round {turn + 1}: {seconds}", flush=True)
    plain_walls = [r[0] for r in rounds["plain"]]
    result: dict[str, Any] = {"plain_seconds": statistics.median(plain_walls)}
    result["plain_spread"] = (max(plain_walls) - min(plain_walls)) / result["plain_seconds"]
    for name in ("sampled", "exact"):
        pairs = list(zip(rounds[name], rounds["plain"], strict=True))
        walls = [ours[0] / plain[0] - 1 for ours, plain in pairs]
        result[f"overhead_{name}"] = statistics.median(walls)
        result[f"overhead_{name}_rounds"] = [round(r, 4) for r in walls]
        result[f"overhead_{name}_processor"] = statistics.median(
            ours[1] / plain[1] - 1 for ours, plain in pairs
        )
        result[f"overhead_{name}_inside"] = statistics.median(ours[2] for ours, _ in pairs)
    return result


def attention_inputs() -> AttentionCall:
    """Return one self-attention at 64 x 64, laid out as diffusers does."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 1, TOKENS, HEADS, WIDTH, generator=generator).transpose(2, 3)
    return AttentionCall("attention", query, key, value)


def full_map(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """The naive way: the whole map, then its column mean and the mean of its square."""
    weights = torch.softmax(call.query @ call.key.transpose(-1, -2) / WIDTH**0.5, dim=-1)
    return weights.mean(-2), weights.square().mean(-2)


def streamed(call: AttentionCall, queries: int | None) -> Callable[[], object]:
    """Return a function that gathers what one attention call adds to the statistics."""
    drawn = None if queries is None else subset(0, [0], TOKENS, queries)

    def run() -> object:
        reading = Reading(call, SinkWeights(), drawn)
        return reading.sums, reading.indicator, reading.sinks

    return run


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the peak of what `run` allocates, from the profiler's allocation events."""
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def kept_bytes() -> int:
    """Return the bytes of the sums that stay for one attention of 4096 tokens and 8 timestep buckets."""
    return sum(observer.bytes(Site("attention", HEADS, TOKENS), 8) for observer in find(NEEDS).values())


def median_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Return the median of a few timed runs after one warm-up."""
    times = []
    with torch.no_grad():
        for turn in range(repeats + 1):
            start = time.perf_counter()
            run()
            times += [time.perf_counter() - start] if turn else []
    return statistics.median(times)


def measure_attention(queries: int) -> dict[str, Any]:
    """Measure memory of the statistics and of the naive way, and the naive way's time, on one attention."""
    call = attention_inputs()
    naive = median_seconds(lambda: full_map(call))
    sampled, exact = streamed(call, queries), streamed(call, None)
    return {
        "full_map_seconds_each": naive,
        "sampled_seconds_each": median_seconds(sampled),
        "exact_seconds_each": median_seconds(exact),
        "extra_bytes_sampled": peak_bytes(sampled) + kept_bytes(),
        "extra_bytes_exact": peak_bytes(exact) + kept_bytes(),
        "extra_bytes_kept": kept_bytes(),
        "extra_bytes_full_map": peak_bytes(lambda: full_map(call)),
    }


def main() -> None:
    """Run the benchmark and print its table and JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of plain, sampled, exact")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=QUERIES, help="queries to sample in each attention")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    result = {
        "overhead_sampled": 0.0,
        "overhead_exact": 0.0,
        **measure_attention(args.queries),
        **measure_forwards(args.repeats, args.batch, args.queries),
        "queries": args.queries,
        "batch": args.batch,
        "repeats": args.repeats,
    }
    result["overhead_full_map"] = (
        LAYERS * result["full_map_seconds_each"] * args.batch / result["plain_seconds"]
    )
    print(
        f"plain forward, median: {result['plain_seconds']:.2f} s "
        f"(batch {args.batch}, {torch.get_num_threads()} threads)"
    )
    if result["plain_spread"] > 0.1:
        print(
            f"the machine is busy: the plain forward's times spread by {result['plain_spread']:.0%}; "
            "trust the processor time and the time inside, or run again when it is quiet"
        )
    for name in ("sampled", "exact"):
        print(
            f"{name}: overhead {result[f'overhead_{name}']:+.2%} (rounds {result[f'overhead_{name}_rounds']}), "
            f"by processor time {result[f'overhead_{name}_processor']:+.2%}, "
            f"time inside {result[f'overhead_{name}_inside']:.2%}, "
            f"extra memory {result[f'extra_bytes_{name}']:,} bytes"
        )
    print(
        f"full map: overhead {result['overhead_full_map']:+.2%} for the {LAYERS} attentions of {TOKENS} tokens alone, "
        f"extra memory {result['extra_bytes_full_map']:,} bytes"
    )
    conclude(result, args.out)


def conclude(result: dict[str, Any], out: Path | None) -> None:
    """Add what the machine is, print everything as one line of JSON, and write it to `out` if that is given."""
    result |= {
        "device": "cpu",
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    line = json.dumps(result)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
