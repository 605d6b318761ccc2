r"""Compare the plan that is chosen among several candidates with the recipe's own plan, on samples that neither saw.

    python -m scripts.bench_candidates --terrain FOLDER --further fashion-dit=MODEL@DATA
        [--models digits-dit digits-unet] [--candidates 8] [--calibration 64] [--samples 32] [--held-out 128]
        [--seeds 0 1 2] [--blocks] [--work runs/bench-candidates] [--out docs/benchmarks/candidates.json]

Recipes are the bundled `quickstart` (digits-dit), `digits-unet` and `terrain` (FOLDER: of scripts/build_terrain.py),
and `quickstart` on a further class-conditional MODEL and its image DATA; with `--blocks` also with whole blocks beside
the widths that it cuts. For each, and each seed of calibration, two runs share one calibration on `--calibration`
samples: one plan (``prune.candidates=1``) and the best of several, each measured on `--samples` of the training split
that calibration did not see. Both are cut, with least squares and without training, and judged by the excess error on
`--held-out` samples of the evaluation split, |eps - eps_dense|^2 / |eps_dense|^2; the ratio of both is over pairs of
samples. The terrain model has a quarter of these samples. What is done is kept in `--work`: the same command goes on
after a kill. The last line is JSON.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.intervals import ratio_interval
from pruning.calibration.driver import prediction
from pruning.files import read_json, write_json
from pruning.recipe import load_recipe
from pruning.stages import Run, run_recipe
from pruning.stages.showing import is_recorded, shown
from scripts.bench_calibration import conclude

RECIPES = {"digits-dit": "quickstart", "digits-unet": "digits-unet", "terrain": "terrain"}
FEWER = 4
"""So many digits stand for one terrain, which has 64 times their pixels."""


def cell(name: str, blocks: bool, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return what came of one recipe, kinds of units and seed, made now or before."""
    few = FEWER if name == "terrain" else 1
    overrides = [
        f"seed={seed}",
        "device=cpu",
        f"calibrate.num_samples={args.calibration // few}",
        f"prune.candidate_samples={args.samples // few}",
        f"store={args.work}/store",
        "recover.enabled=false",
        "calibrate.diagnostics=false",
        *args.sources.get(name, []),
    ]
    recipe = RECIPES.get(name, "quickstart")
    kinds = [*load_recipe(recipe).prune.kinds, *(["blocks"] if blocks else [])]
    overrides.append(f"prune.kinds=[{','.join(kinds)}]")
    asked = {
        "recipe": recipe,
        "overrides": overrides,
        "candidates": args.candidates,
        "held_out": args.held_out,
    }
    label = f"{name}{'-blocks' if blocks else ''}-{seed}"
    kept = args.work / "cells" / f"{label}.json"
    if (before := read_json(kept)) is not None and before["asked"] == asked:
        return before
    runs = {}
    for count in (args.candidates, 1):
        where = [f"prune.candidates={count}", f"run_dir={args.work}/{label}-{count}", f"name={label}-{count}"]
        run_recipe(recipe, [*overrides, *where], until="prune", progress=False)
        runs[count] = Run(load_recipe(recipe, [*overrides, *where]), progress=False)
    trace = read_json(runs[args.candidates].result("plan").folder / "candidates.json")
    assert trace is not None
    errors = judged(runs, args.held_out // few)
    power = errors.pop("power")
    single, best = errors[1], errors[args.candidates]
    row = {
        "asked": asked,
        "model": name,
        "kinds": kinds,
        "seed": seed,
        "target": str(runs[1].recipe.prune.target),
        "chosen": trace["rows"][trace["chosen"]]["name"],
        "candidates": [
            {key: one.get(key) for key in ("name", "excess_error", "ratio", "ratio_ci95", "same_as", "why")}
            for one in trace["rows"]
        ],
        "samples": trace["samples"],
        "held_out": len(power),
        "single": float(single.sum() / power.sum()),
        "single_ci95": ratio_interval(single, power),
        "best": float(best.sum() / power.sum()),
        "best_ci95": ratio_interval(best, power),
        "ratio": float(best.sum() / single.sum()),
        "ratio_ci95": ratio_interval(best, single),
        "macs_left": _macs_left(runs[1]),
        "macs_left_best": _macs_left(runs[args.candidates]),
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, row)
    return row


def _macs_left(run: Run) -> float:
    macs = run.plan.meta["macs"]
    return macs["plan"] / macs["dense"]


def judged(runs: dict[int, Run], count: int) -> dict[Any, Tensor]:
    """Return, by number of candidates, ``|eps - eps_dense|^2`` of each sample, and ``power``, ``|eps_dense|^2``."""
    run = runs[1]
    models = {"dense": run.dense, **{key: one.load_pruned() for key, one in runs.items()}}
    if not is_recorded(run):
        count = min(count, len(run.images(run.recipe.data.eval_split)))
    rows: dict[Any, list[Tensor]] = {key: [] for key in ("ids", "power", *runs)}
    with torch.no_grad():
        for batch in shown(run, range(count), held_out=True, batch_size=run.recipe.calibrate.batch_size):
            found = {key: prediction(model, batch).double() for key, model in models.items()}
            rows["ids"].append(batch.sample_ids)
            rows["power"].append(found["dense"].square().flatten(1).sum(1))
            for key in runs:
                rows[key].append((found[key] - found["dense"]).square().flatten(1).sum(1))
    ids, place = torch.cat(rows.pop("ids")).unique(return_inverse=True)
    zeros = torch.zeros(len(ids), dtype=torch.float64)
    return {key: zeros.index_add(0, place, torch.cat(values)) for key, values in rows.items()}


def median_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return each model's geometric mean over seeds of the ratio to the single plan, and the median of models."""
    by_model = {
        name: statistics.geometric_mean([row["ratio"] for row in rows if row["model"] == name])
        for name in dict.fromkeys(row["model"] for row in rows)
    }
    return {**by_model, "median": statistics.median(by_model.values())}


def main() -> None:
    """Compare on every model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["digits-dit", "digits-unet"])
    parser.add_argument("--terrain", metavar="FOLDER")
    parser.add_argument("--further", nargs="*", default=[], metavar="NAME=MODEL@DATA")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-candidates"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    args.sources = {}
    if args.terrain:
        args.sources["terrain"] = [f"model.source={args.terrain}"]
    for entry in args.further:
        name, _, rest = entry.partition("=")
        model, _, data = rest.partition("@")
        args.sources[name] = [f"model.source={model}", f"data.source={data}"]
    rows = []
    names = dict.fromkeys([*args.models, *args.sources])
    for blocks, seed, name in product((False, True)[: 1 + args.blocks], args.seeds, names):
        row = cell(name, blocks, seed, args)
        rows.append(row)
        print(
            "{model} {kinds} seed {seed}: single {single:.5f}, {chosen}: {best:.5f}, ratio {ratio:.3f} "
            "{ratio_ci95}".format(**row),
            flush=True,
        )
    sizes = ("candidates", "calibration", "samples", "held_out", "seeds")
    result: dict[str, Any] = {key: getattr(args, key) for key in sizes}
    result["widths"] = median_of([row for row in rows if "blocks" not in row["kinds"]])
    if args.blocks:
        result["with_blocks"] = median_of([row for row in rows if "blocks" in row["kinds"]])
    result["rows"] = [{key: value for key, value in row.items() if key != "asked"} for row in rows]
    conclude(result, args.out)


if __name__ == "__main__":
    main()
