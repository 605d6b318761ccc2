"""From raw cells to what is published: the rows, the contrasts, the table, the plots."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from study.contrasts import Row, arms, by_set, primary, recovered, told
from study.inference import Contrast, crossed_bootstrap, geometric_mean, paired, verdicts
from study.store import Store
from study.subjects import DECIDING, DEFAULT, LEFT_AFTER, RATIO, SUBJECTS, Cell

PAGE = "sink-awareness"
FACTS = ("precondition", "pretest", "timestep-share", "heads", "frechet-dense", "frechet-real")
FIELDS = tuple(Cell.__dataclass_fields__)


def publish(store: Store, folder: Path) -> None:
    """Write the rows, the contrasts with their bootstrap intervals, and the plots."""
    from study.plots import draw  # matplotlib is slow to load
    from study.tables import fill

    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted(store.rows.values(), key=lambda row: tuple(str(row[key]) for key in FIELDS))
    _write(folder / f"{PAGE}.json", rows)
    facts = {
        name: {fact: found for fact in FACTS if (found := store.fact(name, fact)) is not None}
        for name in SUBJECTS
    }
    _write(folder / f"{PAGE}-facts.json", {name: found for name, found in facts.items() if found})
    contrasts = primary(rows)
    bootstraps = {contrast.model: _bootstrap(store, contrast) for contrast in contrasts}
    kept = [{**asdict(c), "crossed_bootstrap": bootstraps[c.model]} for c in contrasts]
    _write(folder / f"{PAGE}-contrasts.json", kept)
    draw(rows, facts, folder)
    page = folder / f"{PAGE}.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), rows, facts, bootstraps), encoding="utf-8")
    print(f"{len(rows)} cells of {len({row['model'] for row in rows})} models in {folder}")


def _write(path: Path, value: Any) -> None:
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    path.write_text(text, encoding="utf-8")


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
    for model in sorted({row["model"] for row in rows}):
        _print_arms(rows, model)
    contrasts = primary(rows)
    print("\nPrimary contrasts: the default against the rival that was best on the other calibration sets")
    verdict = verdicts(contrasts)
    for contrast, word in zip(contrasts, verdict, strict=True):
        print(f"  {contrast.model:<22} against {contrast.second:<14} {told(contrast)}  {word}")
    print(
        "\nAfter equal training back: Fréchet distance with the default against that with another criterion"
    )
    for ratio in LEFT_AFTER:
        for c in recovered(rows, ratio):
            print(f"  {c.model:<22} {ratio:.0%} left, against {c.second:<14} {told(c)}  ({c.sets} sets)")
    groups: dict[str, list[str]] = {"win": [], "loss": [], "equivalent": [], "inconclusive": []}
    for contrast, word in zip(contrasts, verdict, strict=True):
        groups[word].append(contrast.model)
    names = {"win": "wins", "loss": "losses", "equivalent": "equivalent", "inconclusive": "inconclusive"}
    print(json.dumps({"default": _default_name(), **{names[word]: found for word, found in groups.items()}}))


def _print_arms(rows: Iterable[Row], model: str) -> None:
    print(f"\n{model}: excess error at {RATIO:.0%} of the MACs, equal shares, least squares, one shot")
    print(f"  {'criterion':<22}{'error':>10}   default against it, % (95 %)")
    ours = by_set(rows, model, DEFAULT[0], DECIDING, omega=DEFAULT[1])
    for criterion, omega in arms(rows, model):
        errors = by_set(rows, model, criterion, DECIDING, omega=omega)
        if errors:
            name = criterion if omega == "off" else f"{criterion} ({omega})"
            mean = geometric_mean(errors.values())
            contrast = paired(model, DEFAULT[0], name, ours, errors)
            print(f"  {name:<22}{mean:>10.5f}   {told(contrast) if name != _default_name() else ''}")


def _default_name() -> str:
    return DEFAULT[0] if DEFAULT[1] == "off" else f"{DEFAULT[0]} ({DEFAULT[1]})"
