"""What each attention head does with its sinks: figures and labels for the report, not rules (SCORES.md section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pruning.importance.base import (
    Weights,
    consumer_columns,
    per_row,
    per_sample,
    unit_covariance,
    unit_energy,
)
from pruning.types import CalibrationStats, PrunableGroup

REQUIRED = frozenset({"row_weight", "input_sum", "input_unit_moment", "samples", "sink_mass"})
"""Without one of these a site is left out; the others are None in the result where they were not gathered."""

DIAGNOSTIC_NEEDS = REQUIRED | {"value_ratio", "value_ratio_count", "split_energy", "max_key_mass"}
"""What to calibrate for the diagnostics; ``entropy`` is shown too if it was gathered."""

HIGH_MASS = 0.3  # share of the attention on sinks that counts as high
LOW_FLUCTUATION = 0.1  # R_h up to which a head is as good as constant
NO_ENERGY = 0.01  # energy, as a share of the site's mean head, below which a head does nothing


def head_diagnostics(
    weights: Weights, groups: Iterable[PrunableGroup], stats: CalibrationStats
) -> list[dict[str, Any]]:
    """Describe every unit of every head group for which `REQUIRED` statistics were gathered.

    Args:
        weights: Parameters by path; only the output projections are read.
        groups: What may be removed; groups of other kinds are left out.
        stats: Sums of a calibration run.

    Returns:
        One dict of JSON types a unit, in group order: ``group, module, head, sink_mass, energy`` (``E||W_h x_h||^2``),
        ``energy_share`` (of the site's heads), ``fluctuation_ratio`` (R_h = tr(W Sigma W^T) / tr(W H W^T)),
        ``within_variance`` and ``between_variance`` (of the head's output, within and between timestep buckets; their
        sum is tr(W Sigma W^T)), ``value_ratio`` (|v_S| / median |v|), ``sink_energy``, ``content_energy`` and
        ``sink_content_product`` (the split of the output), ``max_key_mass``, ``entropy`` (nats) and ``label``.
    """
    rows: list[dict[str, Any]] = []
    for group in groups:
        if group.kind == "attention_heads" and all(stats.has(group.name, need) for need in REQUIRED):
            rows += _site(weights, group, stats)
    return rows


def label(sink_mass: float, fluctuation_ratio: float, energy_of_mean: float) -> str:
    """Name what a head does.

    Args:
        sink_mass: Share of its attention on sinks, 0 to 1.
        fluctuation_ratio: R_h, 0 (its output is constant) to 1 (its mean is zero).
        energy_of_mean: Its energy divided by the mean over the heads of its site.

    Returns:
        ``nop`` (puts out nothing), ``constant`` (rests on sinks and puts out a constant: prune and fold), ``gate``
        (rests on sinks and turns on at times: keep) or ``ordinary``.
    """
    if energy_of_mean < NO_ENERGY:
        return "nop"
    if sink_mass < HIGH_MASS:
        return "ordinary"
    return "constant" if fluctuation_ratio <= LOW_FLUCTUATION else "gate"


def _site(weights: Weights, group: PrunableGroup, stats: CalibrationStats) -> list[dict[str, Any]]:
    columns = consumer_columns(group, weights)  # (C, P)
    width, units = columns.shape[1], group.num_units
    u = width // units
    energy = unit_energy(columns, per_row(group, stats, "input_unit_moment", (units, u, u))).clamp(min=0)
    fluctuation = unit_energy(columns, unit_covariance(group, stats, width)).clamp(min=0).minimum(energy)
    between = _between_buckets(columns, group, stats).minimum(fluctuation)
    mean_energy = float(energy.mean())
    ratio = torch.where(energy > 0, fluctuation / energy.clamp(min=1e-300), 0.0)
    mass = _by_unit(per_sample(group, stats, "sink_mass").sum(0), units)
    optional = _optional(group, stats)
    found = []
    for head in range(units):
        share = float(energy[head]) / mean_energy if mean_energy > 0 else 0.0
        row: dict[str, Any] = {
            "group": group.name,
            "module": group.module,
            "head": head,
            "sink_mass": float(mass[head]),
            "energy": float(energy[head]),
            "energy_share": share / units,
            "fluctuation_ratio": float(ratio[head]),
            "within_variance": float(fluctuation[head] - between[head]),
            "between_variance": float(between[head]),
        }
        row |= {name: None if values is None else float(values[head]) for name, values in optional.items()}
        if row["value_ratio"] is not None and not torch.isfinite(torch.tensor(row["value_ratio"])):
            row["value_ratio"] = None
        row["label"] = label(row["sink_mass"], row["fluctuation_ratio"], share)
        found.append(row)
    return found


def _between_buckets(columns: Tensor, group: PrunableGroup, stats: CalibrationStats) -> Tensor:
    """Return ``sum_tau p_tau ||W_h (mu_tau - mu)||^2`` by head, ``(G,)``; buckets without rows weigh nothing."""
    rows = stats.get(group.name, "row_weight").to("cpu", torch.float64)  # (T,)
    sums = stats.get(group.name, "input_sum").to("cpu", torch.float64)  # (T, P)
    seen = rows > 0
    rows, sums = rows[seen], sums[seen]
    offsets = sums / rows[:, None] - sums.sum(0) / rows.sum()
    by_unit = columns.unflatten(1, (group.num_units, -1))  # (C, G, u)
    moved = torch.einsum("cgu,tgu->tgc", by_unit, offsets.unflatten(1, (group.num_units, -1)))
    return (rows / rows.sum()) @ moved.square().sum(2)


def _optional(group: PrunableGroup, stats: CalibrationStats) -> dict[str, Tensor | None]:
    units = group.num_units
    out: dict[str, Tensor | None] = dict.fromkeys(
        ("value_ratio", "sink_energy", "content_energy", "sink_content_product", "max_key_mass", "entropy")
    )
    if stats.has(group.name, "value_ratio") and stats.has(group.name, "value_ratio_count"):
        ratio = stats.get(group.name, "value_ratio") / stats.get(group.name, "value_ratio_count")
        out["value_ratio"] = _by_unit(ratio, units)  # NaN where a head never had a sink
    if stats.has(group.name, "split_energy"):
        split = stats.get(group.name, "split_energy")
        split = per_row(group, stats, "split_energy", tuple(split.shape))  # (H, 3)
        for k, name in enumerate(("sink_energy", "content_energy", "sink_content_product")):
            out[name] = _by_unit(split[:, k], units)
    for name in ("max_key_mass", "entropy"):
        if stats.has(group.name, name):
            out[name] = _by_unit(per_sample(group, stats, name).sum(0), units)
    return out


def _by_unit(heads: Tensor, units: int) -> Tensor:
    """Average query heads ``(H,)`` over the key/value head that they share, ``(G,)``."""
    return heads.to("cpu", torch.float64).unflatten(0, (units, -1)).mean(1)
