"""Compare blocks chosen by the sum of their single changes with blocks chosen by measuring sets of them, on the CPU.

    python scripts/bench_depth.py [--models NAME=SOURCE …] [--terrain FOLDER] [--keep 0.75 0.5] [--budgets 20 50 100]
        [--measure params] [--samples 32] [--held-out 256] [--threads 1] [--out FILE]

Models on digits see `--samples` training digits at 8 timesteps: first for `block_change`, the change of the output
without each single block, then for each set that a search measures. `--terrain` is a consistency UNet on 1 x 128 x 128
heights without data: it sees its own samples, noised to sigma 80, 5, 0.5 and 0.1, a sixteenth as many of them.

Arms, all of kinds=[blocks], at the same cost: ``sum``, the plan that `allocate` makes of `block_change`; ``best sum``,
the set of the least sum of single changes that a search of two measurements finds (what a better addition alone would
give); and a search at each budget. Each is judged by the excess error on held-out images,
|eps - eps_dense|^2 / |eps_dense|^2, without compensation or training. The last line of output is JSON.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from bench_calibration import conclude
from torch import Tensor, nn

from eval.run import measure_all
from eval.types import Context
from eval.types import Subject as Judged
from pruning.allocation import CostModel, allocate, choose_blocks
from pruning.calibration import OutputChange, calibrate
from pruning.data import NoisedBatch, NoisedBatches, open_images
from pruning.groups import find_groups
from pruning.importance import needs_of, score, single_changes
from pruning.interface import noised_batches
from pruning.models import denoise, example_call, load_denoiser, load_scheduler, resolve_source, sample_shape
from pruning.settings import Depth, Prune, Target
from pruning.surgery import apply_plan
from pruning.types import PruningPlan

BUCKETS, BATCH = 8, 64
MODELS = ("digits-dit=bundled:models/digits-dit", "digits-unet=bundled:models/digits-unet")
SIGMAS = (0.1, 0.5, 5.0, 80.0)
PER_TERRAIN = 16
"""So many digits stand for one terrain, which has 64 times their pixels."""


@dataclass(frozen=True)
class Bench:
    """A model and what it sees.

    Attributes:
        name: In the table.
        model: The dense model.
        seen: What blocks are measured on.
        held_out: What plans are judged on.
    """

    name: str
    model: Any
    seen: NoisedBatches
    held_out: NoisedBatches


def digits(name: str, source: str, args: argparse.Namespace) -> Bench:
    """Return a model of digits with training digits and held-out ones."""
    folder = resolve_source(source)
    model: Any = load_denoiser(folder)
    channels, size, _ = sample_shape(model)

    def batches(split: str, count: int, seed: int) -> NoisedBatches:
        data = open_images("digits", split=split, channels=channels, resolution=size)
        made = noised_batches(
            model,
            load_scheduler(folder),
            data,
            samples=min(count, len(data)),
            batch_size=BATCH,
            timestep_buckets=BUCKETS,
            seed=seed,
        )
        return held(list(made), BUCKETS)

    return Bench(name, model, batches("train", args.samples, 0), batches("test", args.held_out, 7))


def terrain(folder: str, args: argparse.Namespace) -> Bench:
    """Return a consistency model with its own samples, noised; held-out ones are of other noise and classes."""
    model: Any = load_denoiser(folder)

    def scales(sigma: float) -> tuple[float, float, float]:  # c_in, c_skip, c_out; sigma_data is 0.5
        far = sigma - 0.002
        return (
            1 / math.sqrt(sigma**2 + 0.25),
            0.25 / (far**2 + 0.25),
            0.5 * far / math.sqrt(sigma**2 + 0.25),
        )

    def call(x: Tensor, sigma: float, labels: Tensor) -> dict[str, Any]:
        times = torch.full((len(x),), 250 * math.log(sigma))
        return {"sample": scales(sigma)[0] * x, "timestep": times, "class_labels": labels}

    @torch.no_grad()
    def batches(count: int, seed: int) -> NoisedBatches:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 100, (count,), generator=generator)
        made = []
        for label in labels.split(8):
            shape, (_, skip, out) = (len(label), *sample_shape(model)), scales(SIGMAS[-1])
            x = SIGMAS[-1] * torch.randn(shape, generator=generator)
            x0 = skip * x + out * denoise(model, call(x, SIGMAS[-1], label))
            ids = torch.arange(len(label)) + 8 * (len(made) // len(SIGMAS))
            for bucket, sigma in enumerate(SIGMAS):
                told = call(x0 + sigma * torch.randn(shape, generator=generator), sigma, label)
                made.append(NoisedBatch(told, torch.zeros(shape), bucket, ids, told["timestep"]))
        return held(made, len(SIGMAS))

    counts = (max(2, count // PER_TERRAIN) for count in (args.samples, args.held_out))
    return Bench("terrain", model, *(batches(count, seed) for seed, count in enumerate(counts)))


def held(batches: Sequence[NoisedBatch], buckets: int) -> NoisedBatches:
    """Return batches that are in memory."""
    return NoisedBatches(lambda: batches, 1000, buckets)


def compare(bench: Bench, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each target and arm of one model."""
    model, groups = bench.model, find_groups(bench.model)
    blocks = [group for group in groups if group.kind == "blocks"]
    cost = CostModel.trace(model, example_call(model, 1), groups)
    began = time.perf_counter()
    stats = calibrate(model, blocks, bench.seen, needs=needs_of("block_change", blocks))
    scores = score(model, blocks, stats, criterion="block_change")
    alone = single_changes(scores, blocks)
    print(
        f"{bench.name}: {len(blocks)} blocks, single changes in {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    effect = OutputChange(model, blocks, bench.seen)
    measure = cache(effect)  # the arms share what they measure
    rows = []
    for keep in args.keep:
        settings = Prune(kinds=["blocks"], target=Target(**{args.measure: keep}))
        plans = {"sum": allocate(blocks, scores, cost, settings)}
        found: dict[str, dict[str, Any]] = {}
        measured = {"sum": 0}
        for name, budget in {"best sum": 2, **{f"search {b}": b for b in args.budgets}}.items():
            asked = replace(settings, depth=Depth(budget=budget))
            plans[name], trace = choose_blocks(
                blocks, scores, cost, asked, plans["sum"], measure, alone=alone
            )
            found |= {"sum": trace["start"], name: trace["chosen"]}
            measured[name] = len(trace["measured"])
        judged = judge(model, bench.held_out, plans)
        rows += [
            {
                "model": bench.name,
                "keep": keep,
                "arm": name,
                "cost": plan.meta["got"] / plan.meta[args.measure]["dense"],
                "blocks": found[name]["removed"],
                "sum_alone": found[name]["sum_alone"] / effect.power,
                "seen": found[name]["change"] / effect.power,
                "excess_error": judged[name]["excess_error"],
                "excess_error_ci95": judged[name]["excess_error_ci95"],
                "measured": measured[name],
            }
            for name, plan in plans.items()
        ]
        for row in rows[-len(plans) :]:
            print(
                "{model} {keep:g} {arm}: cost {cost:.4f} sum {sum_alone:.5f} seen {seen:.5f} held out "
                "{excess_error:.5f} {excess_error_ci95} measured {measured}".format(**row),
                flush=True,
            )
    return rows


def judge(
    model: nn.Module, held_out: NoisedBatches, plans: dict[str, PruningPlan]
) -> dict[str, dict[str, Any]]:
    """Return the denoising metric of each plan."""

    def predictor(slim: nn.Module) -> Judged:
        return Judged(predict=torch.no_grad()(partial(denoise, slim)))

    slim = {name: apply_plan(copy.deepcopy(model), plan) for name, plan in plans.items()}
    subjects = {"dense": predictor(model), **{name: predictor(one) for name, one in slim.items()}}
    return measure_all(Context(subjects, noised=lambda: held_out), ["denoising"])


def main() -> None:
    """Compare on every model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME=SOURCE")
    parser.add_argument("--terrain", metavar="FOLDER")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.75, 0.5])
    parser.add_argument("--budgets", nargs="+", type=int, default=[20, 50, 100])
    parser.add_argument("--measure", choices=("params", "macs"), default="params")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    makers: list[Callable[[], Bench]] = [
        partial(digits, *named.partition("=")[::2], args) for named in args.models
    ]
    if args.terrain:
        makers.append(partial(terrain, args.terrain, args))
    rows = [row for make in makers for row in compare(make(), args)]
    settings = {key: getattr(args, key) for key in ("samples", "held_out", "measure")}
    conclude({"rows": rows, **settings}, args.out)


if __name__ == "__main__":
    main()
