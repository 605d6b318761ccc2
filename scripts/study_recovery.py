"""Does pruning beat training a small model? Equal training of pruned models, by criterion, and of one from scratch.

    python scripts/study_recovery.py run --models fashion-dit --minutes 60   # resumable, cell by cell
    python scripts/study_recovery.py publish                                 # docs/studies/recovery.json
    python scripts/study_recovery.py --summary                               # the tables; the last line is JSON

Each model (`scripts/train_base.py`, `scripts/train_study.py`) is cut to half of its MACs in several ways, and each
result trained with the same images, noise, loss and number of steps, a tenth of those of the dense model: by our
default (`probe_obs`, least squares, global), and as the peers do by magnitude, by Diff-Pruning's scores and at random,
without compensation. *Scratch* is the architecture that the default found with weights drawn anew, trained in the same
way at the dense model's own learning rate. Set 0 is for looking around (`--seeds 0`), 4, 5 and 6 decide. A seed draws
the calibration set, the training's samples and the weights from scratch. All sample from the same noise.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from study.bench import Bench, needed  # noqa: E402
from study.inference import geometric_mean, paired  # noqa: E402
from study.recovery import frechet_of_images, images_of, real_images  # noqa: E402
from study.subjects import SUBJECTS, Cell  # noqa: E402
from train_base import PRESETS, build  # noqa: E402

from pruning import recovery  # noqa: E402
from pruning.files import write_json  # noqa: E402
from pruning.recovery import recover_images  # noqa: E402
from pruning.settings import Recover  # noqa: E402
from pruning.surgery import apply_plan  # noqa: E402

log = logging.getLogger("study")
WORK, PUBLISHED = ROOT / "runs/study-recovery", ROOT / "docs/studies/recovery.json"
RATIO, SHARE = 0.5, 0.1
"""MACs that stay, and steps as a share of the dense model's."""
SEEDS = (4, 5, 6)
MODELS = ("fashion-dit", "cifar-dit")
SAMPLES, STEPS = 2000, 25
"""Images of each model, and steps of the sampler."""
SCRATCH_RATE = 1e-3
TRAINING = Recover(batch_size=64, learning_rate=5e-4, feature_weight=1.0)


@dataclass(frozen=True)
class Arm:
    """One way to get a slim model.

    Attributes:
        criterion: What ranks units.
        compensation: What makes up for them before training.
        scope: ``local`` or ``global``.
        anew: Weights are drawn anew in the architecture that is found.
    """

    criterion: str
    compensation: str = "none"
    scope: str = "local"
    anew: bool = False


ARMS = {
    "default": Arm("probe_obs", "least_squares", "global"),
    "magnitude": Arm("magnitude"),
    "diff_pruning": Arm("diff_pruning", scope="global"),
    "random": Arm("random"),
    "scratch": Arm("probe_obs", "least_squares", "global", anew=True),
}


def measure(bench: Bench, arm: Arm, seed: int, settings: Recover) -> dict[str, Any]:
    """Cut, train, and say how good the result is, before and after."""
    cell = Cell(
        bench.subject.name,
        arm.criterion,
        compensation=arm.compensation,
        scope=arm.scope,
        macs_ratio=RATIO,
        seed=seed,
    )
    model, plan = bench.prune(cell, bench.calibrate(seed, needed(cell, bench.groups)))
    macs = plan.meta["macs"]
    if arm.anew:
        model = apply_plan(drawn_anew(bench.dense, seed), replace(plan, base_hash=""))
        settings = replace(settings, learning_rate=SCRATCH_RATE)
    before = judged(bench, model)
    began = time.monotonic()
    result = recover_images(
        model,
        bench.dense,
        bench.shown("train", range(len(bench.run.images("train")))),
        settings,
        features=recovery.pairs(bench.run.meta, plan),
        seed=seed,
        device="cpu",
    )
    model.eval()
    return {
        "macs": macs["plan"] / macs["dense"],
        "steps": result.steps,
        "seconds": round(time.monotonic() - began, 1),
        "before": before,
        **judged(bench, model),
    }


def drawn_anew(dense: nn.Module, seed: int) -> nn.Module:
    """Return a model of the same config with the first weights that `train_base.py` would draw."""
    config: dict[str, Any] = dict(dense.config)  # type: ignore[arg-type,call-overload]
    preset = next(p for p in PRESETS.values() if p["class"] == type(dense).__name__)
    sizes = {key: value for key, value in config.items() if not key.startswith("_")}
    return build(preset, sizes, seed)[0]


def judged(bench: Bench, model: nn.Module) -> dict[str, float]:
    """Return the excess error on held-out images and the Fréchet distance of samples."""
    return {
        "excess_error": bench.damage(model).excess_error,
        "frechet": frechet_of_images(bench, images_of(bench, model, SAMPLES, STEPS)),
    }


def steps_of_dense(source: str) -> int:
    """Return how many steps of 64 images a dense model was trained for."""
    trained = json.loads((Path(source) / "training.json").read_text())
    if trained["batch_size"] != TRAINING.batch_size:
        raise SystemExit(
            f"{source} was trained in batches of {trained['batch_size']}, not {TRAINING.batch_size}"
        )
    return trained["steps"]


def run(names: list[str], arms: list[str], seeds: list[int], minutes: float, settings: Recover) -> None:
    """Measure what is missing, seed by seed, until the time is up."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        source = SUBJECTS[name].source
        if not Path(source).exists():
            log.warning("%s is left out: there is no %s", name, source)
            continue
        bench = Bench(SUBJECTS[name])
        own = replace(settings, steps=round(SHARE * steps_of_dense(source)))
        _known(name, "dense", partial(judged, bench, bench.dense))
        _known(name, "real", partial(_of_real, bench))
        for seed in seeds:
            for arm in arms:
                if time.monotonic() > end:
                    log.info("time is up in %s", name)
                    return
                found = _known(name, f"{arm}-{seed}", partial(_row, bench, arm, seed, own))
                log.info("%s %s %d: %s", name, arm, seed, found)


def _row(bench: Bench, arm: str, seed: int, settings: Recover) -> dict[str, Any]:
    named = {"model": bench.subject.name, "arm": arm, "seed": seed}
    return {**named, **asdict(ARMS[arm]), **measure(bench, ARMS[arm], seed, settings)}


def _of_real(bench: Bench) -> dict[str, Any]:
    return {"frechet": frechet_of_images(bench, real_images(bench, "train", SAMPLES))}


def _known(model: str, what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = WORK / model / f"{what}.json"
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return json.loads(path.read_text())


def publish() -> None:
    """Write the cells of the deciding seeds, what the dense models come to, and the settings."""
    found: dict[str, Any] = {"settings": asdict(TRAINING), "ratio": RATIO, "share": SHARE, "models": {}}
    for name in MODELS:
        cells = [WORK / name / f"{arm}-{seed}.json" for seed in SEEDS for arm in ARMS]
        rows = [json.loads(path.read_text()) for path in cells if path.exists()]
        if rows:
            dense, real = (
                json.loads((WORK / name / f"{what}.json").read_text()) for what in ("dense", "real")
            )
            found["models"][name] = {"dense": dense, "real": real, "cells": rows}
    write_json(PUBLISHED, found)
    summary()


def summary() -> None:
    """Print for each model and arm the Fréchet distance over the dense model's, and how the default compares."""
    published = json.loads(PUBLISHED.read_text())
    last: dict[str, Any] = {}
    for name, found in published["models"].items():
        dense = found["dense"]["frechet"]
        print(f"\n{name}: dense {dense:.4g}, as many real images {found['real']['frechet']:.4g}\n")
        print(
            "| arm | Fréchet distance over the dense model's | before training | excess error | default over it |"
        )
        print("|---|---|---|---|---|")
        by_arm = {arm: {row["seed"]: row for row in found["cells"] if row["arm"] == arm} for arm in ARMS}
        ours = {seed: row["frechet"] for seed, row in by_arm["default"].items()}
        for arm, rows in by_arm.items():
            if not rows:
                continue
            own = {seed: row["frechet"] for seed, row in rows.items()}
            ratio = paired(name, arm, "dense", own, {seed: float(dense) for seed in own})
            against = paired(name, "default", arm, ours, own) if arm != "default" else None
            mean = geometric_mean(own.values()) / dense
            before = geometric_mean(row["before"]["frechet"] for row in rows.values()) / dense
            excess = geometric_mean(row["excess_error"] for row in rows.values())
            print(
                f"| {arm} | {mean:.3f}{_interval(ratio)} | {before:.2f} | {excess:.4f} | "
                f"{'' if against is None else f'{_times(against.log_ratio)}{_interval(against)}'} |"
            )
            last[f"{name}/{arm}"] = round(mean, 4)
    print()
    print(json.dumps(last))


def _times(log_ratio: float) -> str:
    return f"{torch.tensor(log_ratio).exp():.3f}"


def _interval(contrast: Any) -> str:
    return "" if contrast is None else f" ({_times(contrast.low)} to {_times(contrast.high)})"


def main() -> None:
    """Run, publish or summarise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["run", "publish"])
    parser.add_argument("--summary", action="store_true", help="print the published tables")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=600.0, help="begin nothing new after this long")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    if given.what == "run":
        run(given.models, given.arms, given.seeds, given.minutes, TRAINING)
    if given.what == "publish":
        publish()
    elif given.summary:
        summary()


if __name__ == "__main__":
    main()
