"""Heads before and after folding: what the report draws of a few of them, on one image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pruning.calibration.contributions import Unit, contributions
from pruning.errors import PruningError
from pruning.importance.moments import consumer_columns, per_row
from pruning.models import is_known, sample_shape
from pruning.stages.run import Run
from pruning.stages.showing import shown
from pruning.types import PrunableGroup

MOST_CONSTANT = 2  # heads shown for their constancy; the least constant one stands beside them
MIN_ENERGY = 0.1  # of the mean head of its site: what puts out less carries nothing
MOSTLY_CONSTANT = 0.5  # R_h up to which more than half of a head goes into the bias
FIGURES = ("module", "head", "kept", "fluctuation_ratio")


def choose_heads(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose the heads to draw: the most constant ones that carry output, pruned ones first, and the least constant.

    `rows` are what `pruning.importance.head_diagnostics` says of heads, each with ``kept``.
    """
    heads = {name: sum(row["group"] == name for row in rows) for name in {row["group"] for row in rows}}
    able = [row for row in rows if row["energy_share"] * heads[row["group"]] >= MIN_ENERGY]

    def order(row: Mapping[str, Any]) -> tuple[bool, float]:
        ratio = row["fluctuation_ratio"]
        return (row["kept"] or ratio > MOSTLY_CONSTANT, ratio)

    constant = sorted(able, key=order)[:MOST_CONSTANT]
    others = [row for row in able if row not in constant]
    contrast = sorted(others, key=lambda row: row["fluctuation_ratio"])[-1:]
    return sorted(constant, key=lambda row: row["fluctuation_ratio"]) + contrast


def write_folding(run: Run, rows: Sequence[Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """Look at a few heads while the dense model sees one image at every timestep; write and describe what they say.

    Args:
        run: Knows model, data and calibration.
        rows: Diagnostics of all heads, each with ``kept``.
        path: Where the tensors go: ``<module>/<head>/before`` and ``after`` (T, N), ``folded`` (1,).

    Returns:
        JSON types for the report: ``file`` and ``heads``, or a ``note`` why none is drawn; empty for a model without
        head groups that were diagnosed.
    """
    groups = {group.name: group for group in run.groups}
    single = [row for row in rows if len(groups[row["group"]].consumed_by) == 1]
    chosen = choose_heads(single)
    if not rows:
        return {}
    if not chosen:
        joint = "Joint attention has two outputs to fold into, so no head is drawn."
        return {"note": "No head carries output, so none is drawn." if single else joint}
    if not is_known(run.meta):
        return {
            "note": "No head is drawn, for where in the image a token lies is not known of this class of model."
        }
    try:
        return _look(run, [(row, groups[row["group"]]) for row in chosen], path)
    except PruningError as error:  # a picture must not cost the run its report
        return {"note": f"No head is drawn: {error}."}


def _look(run: Run, chosen: Sequence[tuple[Mapping[str, Any], PrunableGroup]], path: Path) -> dict[str, Any]:
    units = [_unit(run, group, row["head"]) for row, group in chosen]
    found = contributions(run.dense, units, shown(run, [0], batch_size=1))
    tensors: dict[str, Tensor] = {}
    heads = []
    for (row, _), seen in zip(chosen, found, strict=True):
        grid = image_grid(run, seen.before.shape[1])
        if grid is None:
            continue
        name = f"{row['module']}/{row['head']}"
        tensors |= {f"{name}/before": seen.before, f"{name}/after": seen.after}
        tensors[f"{name}/folded"] = torch.tensor([seen.folded])
        heads.append({**{key: row[key] for key in FIGURES}, "tokens": seen.before.shape[1], "grid": grid})
    if not heads:
        return {"note": "No head is drawn, for the tokens are no grid of the image."}
    save_file({key: value.float().contiguous() for key, value in tensors.items()}, str(path))
    return {"file": path.name, "heads": heads}


def image_grid(run: Run, tokens: int) -> list[int] | None:
    """Return rows and columns of that many image tokens, or None if no grid of the input's shape has as many.

    Of a model of no known family the shape is not known either.
    """
    if not is_known(run.meta):
        return None
    _, height, width = sample_shape(run.meta)
    scale = math.sqrt(height * width / tokens)
    rows, columns = round(height / scale), round(width / scale)
    return [rows, columns] if rows * columns == tokens else None


def _unit(run: Run, group: PrunableGroup, index: int) -> Unit:
    """Return a head with its columns of the output projection and the mean that folding takes."""
    columns = consumer_columns(group, run.weights)  # (C, P)
    mean = per_row(group, run.stats.of(group), "input_sum", (columns.shape[1],))
    return Unit(
        group,
        index,
        columns.unflatten(1, (group.num_units, -1))[:, index],
        mean.unflatten(0, (group.num_units, -1))[index],
    )
