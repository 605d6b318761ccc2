"""From raw cells to what is published: the rows, the contrasts, the table, the plots."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from study.inference import Contrast, crossed_bootstrap, paired, verdicts
from study.store import Store
from study.subjects import DECIDING, DEFAULT, LOOKING, RATIO, RIVALS, SUBJECTS, Cell

PAGE = "sink-awareness"
FACTS = ("precondition", "pretest", "heads", "frechet-dense")
FIELDS = tuple(Cell.__dataclass_fields__)
Row = Mapping[str, Any]


def publish(store: Store, folder: Path) -> None:
    """Write the rows, the contrasts with their bootstrap intervals, and the plots."""
    from study.plots import draw

    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(store.rows.values(), key=lambda row: tuple(str(row[key]) for key in FIELDS))
    _write(folder / f"{PAGE}.json", rows)
    facts = {
        name: {fact: found for fact in FACTS if (found := store.fact(name, fact)) is not None}
        for name in SUBJECTS
    }
    _write(folder / f"{PAGE}-facts.json", {name: found for name, found in facts.items() if found})
    contrasts = [{**asdict(c), "crossed_bootstrap": _bootstrap(store, c)} for c in primary(rows)]
    _write(folder / f"{PAGE}-contrasts.json", contrasts)
    draw(rows, facts, folder)
    print(f"{len(rows)} cells of {len({row['model'] for row in rows})} models in {folder}")


def _write(path: Path, value: Any) -> None:
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


def by_set(
    rows: Iterable[Row], model: str, criterion: str, sets: Iterable[int], **where: Any
) -> dict[int, float]:
    """Return the excess error of an arm by calibration set; the mean over draws where there are several.

    Args:
        rows: Published rows.
        model: Name of the subject.
        criterion: Name of the criterion.
        sets: Calibration sets to look at.
        where: Further fields; by default the primary setting (equal shares, least squares, 30 % off, one shot).
    """
    wanted = {
        "model": model,
        "criterion": criterion,
        "omega": "off",
        "compensation": "least_squares",
        "scope": "local",
        "selection": "one_shot",
        "macs_ratio": RATIO,
        "recovered": False,
        "unstable": 1.0,
        "stable": 0.0,
        **where,
    }
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["seed"] in sets and all(row[key] == value for key, value in wanted.items()):
            found[row["seed"]].append(row["excess_error"])
    return {seed: float(np.exp(np.mean(np.log(errors)))) for seed, errors in found.items()}


def best_rival(rows: Iterable[Row], model: str) -> str | None:
    """Return the rival with the lowest error on the sets for looking around; they decide nothing else."""
    rows = list(rows)
    means = {}
    for name in RIVALS:
        errors = by_set(rows, model, name, LOOKING)
        if len(errors) == len(LOOKING):
            means[name] = np.mean(np.log(list(errors.values())))
    return min(means, key=lambda name: means[name]) if len(means) == len(RIVALS) else None


def primary(rows: Iterable[Row]) -> list[Contrast]:
    """Return the primary contrast of every model: the default against its best rival, on the deciding sets."""
    rows = list(rows)
    found = []
    for model in SUBJECTS:
        rival = best_rival(rows, model)
        if rival is None:
            continue
        ours = by_set(rows, model, DEFAULT[0], DECIDING, omega=DEFAULT[1])
        contrast = paired(model, DEFAULT[0], rival, ours, by_set(rows, model, rival, DECIDING))
        if contrast is not None:
            found.append(contrast)
    return found


def _bootstrap(store: Store, contrast: Contrast) -> list[float] | None:
    """Return the crossed bootstrap of a contrast, over calibration sets and images; None if images are gone."""
    stacks = []
    for name, omega in ((contrast.first, DEFAULT[1]), (contrast.second, "off")):
        images = [store.images(Cell(contrast.model, name, omega, seed=seed)) for seed in DECIDING]
        if any(found is None for found in images):
            return None
        stacks.append(np.stack([found for found in images if found is not None]))
    low, high = crossed_bootstrap(stacks[0][:, 0], stacks[1][:, 0], stacks[0][0, 1])
    return [low, high]


def summary(folder: Path) -> None:
    """Print, from the published rows alone, every arm beside the default; the last line is JSON."""
    path = folder / f"{PAGE}.json"
    if not path.exists():
        raise SystemExit(f"there is no {path}; run the study and publish it first")
    rows = json.loads(path.read_text(encoding="utf-8"))
    contrasts = primary(rows)
    for model in sorted({row["model"] for row in rows}):
        print(f"\n{model}: excess error at {RATIO:.0%} of the MACs, equal shares, least squares, one shot")
        print(f"  {'criterion':<22}{'error':>10}   default against it, % (95 %)")
        ours = by_set(rows, model, DEFAULT[0], DECIDING, omega=DEFAULT[1])
        for criterion, omega in arms(rows, model):
            errors = by_set(rows, model, criterion, DECIDING, omega=omega)
            if not errors:
                continue
            name = criterion if omega == "off" else f"{criterion} ({omega})"
            mean = math.exp(np.mean(np.log(list(errors.values()))))
            contrast = paired(model, DEFAULT[0], name, ours, errors)
            print(f"  {name:<22}{mean:>10.5f}   {_told(contrast) if name != _default_name() else ''}")
    print("\nPrimary contrasts: the default against the rival that was best on the other calibration sets")
    verdict = verdicts(contrasts)
    for contrast, word in zip(contrasts, verdict, strict=True):
        print(f"  {contrast.model:<22} against {contrast.second:<14} {_told(contrast)}  {word}")
    groups: dict[str, list[str]] = {"win": [], "loss": [], "equivalent": [], "inconclusive": []}
    for contrast, word in zip(contrasts, verdict, strict=True):
        groups[word].append(contrast.model)
    names = {"win": "wins", "loss": "losses", "equivalent": "equivalent", "inconclusive": "inconclusive"}
    print(json.dumps({"default": _default_name(), **{names[word]: found for word, found in groups.items()}}))


def arms(rows: Iterable[Row], model: str) -> list[tuple[str, str]]:
    """Return criterion and omega of the arms measured on a model, the default first."""
    found = {
        (row["criterion"], row["omega"]) for row in rows if row["model"] == model and not row["recovered"]
    }
    return sorted(found, key=lambda arm: (arm != DEFAULT, arm))


def _default_name() -> str:
    return DEFAULT[0] if DEFAULT[1] == "off" else f"{DEFAULT[0]} ({DEFAULT[1]})"


def _told(contrast: Contrast | None) -> str:
    if contrast is None:
        return ""
    mid, low, high = contrast.percent
    return f"{mid:+6.1f} ({low:+.1f} to {high:+.1f})"
