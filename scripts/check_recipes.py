"""Run the recipes of real models whole, each on a tiny random pipeline of the same class.

    python scripts/check_recipes.py --out docs/studies/recipes.json
    python scripts/check_recipes.py sdxl flux1-dev

Every recipe goes from recording to the report, with sizes, samples and steps made small. What is proven is that the
stages serve the pipeline; the figures of random weights mean nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch

from pruning.files import write_json
from pruning.recipe import load_recipe
from pruning.stages import run_recipe
from tests.recipes import REAL, made_small


def check(name: str, folder: Path) -> dict[str, Any]:
    """Run a recipe in a folder; return what came of it."""
    began = time.perf_counter()
    small = made_small(REAL[name], folder / "model")
    found: dict[str, Any] = {"recipe": name, "tiny": REAL[name].tiny, "pipeline": REAL[name].pipeline}
    try:
        run_recipe(load_recipe(name, [*small, f"run_dir={folder / 'run'}"]))
    except Exception as error:  # whatever stops a recipe is what we want to know
        return {**found, "fault": f"{type(error).__name__}: {error}"}
    metrics = json.loads((folder / "run" / "evaluate" / "metrics.json").read_text("utf-8"))
    pruned, recovered = metrics["pruned"], metrics["recovered"]
    params = json.loads((folder / "run" / "summary.json").read_text("utf-8"))["params_ratio"]
    return {
        **found,
        "fault": None,
        "report": (folder / "run" / "report" / "report.html").is_file(),
        "params_ratio": params,
        "excess_error_pruned": pruned["excess_error"],
        "excess_error_recovered": recovered["excess_error"],
        **{
            f"{key}_{name}": metrics[name][key]
            for key in ("ssim", "spectral_error")
            for name in ("pruned", "recovered")
            if key in metrics[name]
        },
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Check the recipes that are named, or all; write and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help=f"some of {', '.join(REAL)}; default: all"
    )
    parser.add_argument("--out", type=Path, help="file for the result, JSON")
    args = parser.parse_args()
    found = []
    for name in args.recipes or REAL:
        with tempfile.TemporaryDirectory() as folder:
            found.append(check(name, Path(folder)))
        print(json.dumps(found[-1]), flush=True)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    if args.out:
        write_json(args.out, {"versions": versions, "recipes": found})
    if any(one["fault"] for one in found):
        raise SystemExit("a recipe failed")


if __name__ == "__main__":
    main()
