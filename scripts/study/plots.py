"""The pictures of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from study.contrasts import arms, by_set
from study.facts import correlations
from study.inference import MARGIN, paired
from study.subjects import DECIDING, DEFAULT, RATIO

INK, ACCENT, QUIET = "#1f2933", "#c2410c", "#9aa5b1"
COLUMNS = 4
STYLE: Any = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], folder: Path) -> None:
    """Write the plots beside the rows, as SVG."""
    mpl.rcParams["svg.hashsalt"] = "sinkprune"
    with mpl.rc_context(STYLE):
        _contrasts(rows, folder / "sink-awareness-criteria.svg")
        _truth(facts, folder / "sink-awareness-heads.svg")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _contrasts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw how the default stands to every other criterion, model by model."""
    models = sorted({row["model"] for row in rows})
    if not models:
        return
    columns = min(len(models), COLUMNS)
    lines = -(-len(models) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(2.6 * columns + 1, 3.9 * lines),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(models) :]:
        axis.set_visible(False)
    names = sorted({arm for model in models for arm in arms(rows, model)} - {DEFAULT}, reverse=True)
    for axis, model in zip(axes.flat, models, strict=False):
        ours = by_set(rows, model, DEFAULT[0], DECIDING, omega=DEFAULT[1])
        axis.axvspan(100 * np.expm1(-MARGIN), 100 * np.expm1(MARGIN), color="#eef1f4", zorder=0)
        axis.axvline(0, color=QUIET, lw=0.8)
        for place, (criterion, omega) in enumerate(names):
            errors = by_set(rows, model, criterion, DECIDING, omega=omega)
            contrast = paired(model, DEFAULT[0], criterion, ours, errors)
            if contrast is None:
                continue
            mid, low, high = contrast.percent
            colour = ACCENT if high < 0 else INK if low > 0 else QUIET
            axis.plot([low, high], [place, place], color=colour, lw=1.6, solid_capstyle="round")
            axis.plot(mid, place, "o", color=colour, ms=4.5)
        axis.set_title(model, fontsize=10, loc="left")
        axis.set_xlabel("excess error of the default\nagainst it, %")
        axis.set_xlim(right=max(10, axis.get_xlim()[1]))
    axes.flat[0].set_yticks(range(len(names)), [c if o == "off" else f"{c} ({o})" for c, o in names])
    figure.suptitle(
        f"{DEFAULT[0]} against the others at {RATIO:.0%} of the MACs (left is better; grey band: within 3 %)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    _save(figure, path)


def _truth(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the rank correlation of each score with what ablating a head does."""
    known = {model: correlations(found["heads"]) for model, found in facts.items() if found.get("heads")}
    if not known:
        return
    scores = list(next(iter(known.values())))
    figure, axis = plt.subplots(figsize=(7.5, 3.4))
    width = 0.8 / len(known)
    for place, (model, found) in enumerate(known.items()):
        colour = (INK, ACCENT, QUIET)[place % 3]
        heights = [found[score]["across_layers"] for score in scores]
        axis.bar(np.arange(len(scores)) + place * width, heights, width * 0.9, label=model, color=colour)
    axis.axhline(0, color=QUIET, lw=0.8)
    axis.set_xticks(np.arange(len(scores)) + 0.4 - width / 2, scores, rotation=30, ha="right")
    axis.set_ylabel("Spearman with mean ablation")
    axis.set_title("How well each score knows what a head is worth, over all layers", fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8)
    _save(figure, path)
