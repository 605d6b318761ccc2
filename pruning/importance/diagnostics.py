"""What each head does with its sinks: figures and labels for the report, not rules (docs/scores.md section 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pruning.importance.moments import (
    Weights,
    consumer_columns,
    per_row,
    per_sample,
    unit_covariance,
    unit_energy,
)
from pruning.types import CalibrationStats, PrunableGroup

OF_ROWS = frozenset({"row_weight", "input_sum", "input_unit_moment"})
DIAGNOSTIC_NEEDS = OF_ROWS | {"samples", "sink_mass"}
"""What to calibrate for the diagnostics; a site that lacks one of these is left out."""

HIGH_MASS = 0.3  # share of the attention on sinks that counts as high
LOW_FLUCTUATION = 0.1  # R_h up to which a head is as good as constant
NO_ENERGY = 0.01  # energy, as a share of the site's mean head, below which a head does nothing


def head_diagnostics(
    weights: Weights, groups: Iterable[PrunableGroup], stats: CalibrationStats
) -> list[dict[str, Any]]:
    """Describe every unit of every head group for which `DIAGNOSTIC_NEEDS` were gathered.

    Args:
        weights: Parameters by path; only the output projections are read.
        groups: What may be removed; groups of other kinds are left out.
        stats: Sums of a calibration run.

    Returns:
        One dict of JSON types per unit, in group order: ``group, module, head, sink_mass, energy``
        (``E||W_h x_h||^2``, summed over the projections that read the head), ``energy_share`` (of the site's heads),
        ``fluctuation_ratio`` (R_h = tr(W Sigma W^T) / tr(W H W^T)) and ``label``.
    """
    measured = [group for group in groups if group.kind == "attention_heads" and _is_measured(group, stats)]
    return [row for group in measured for row in _site(weights, group, stats)]


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


def _is_measured(group: PrunableGroup, stats: CalibrationStats) -> bool:
    of_rows = all(stats.of(one).has(group.name, need) for one in group.consumers for need in OF_ROWS)
    return of_rows and all(stats.of(group).has(group.name, need) for need in ("samples", "sink_mass"))


def _site(weights: Weights, group: PrunableGroup, stats: CalibrationStats) -> list[dict[str, Any]]:
    units = group.num_units
    found = [_energies(weights, one, stats.of(one)) for one in group.consumers]
    energy, fluctuation = (torch.stack(parts).sum(0) for parts in zip(*found, strict=True))
    mean_energy = float(energy.mean())
    ratio = torch.where(energy > 0, fluctuation / energy.clamp(min=1e-300), 0.0)
    mass = per_sample(group, stats.of(group), "sink_mass").sum(0)  # (H,)
    mass = mass.unflatten(0, (units, -1)).mean(1)  # query heads share a key/value head
    rows = []
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
        }
        row["label"] = label(row["sink_mass"], row["fluctuation_ratio"], share)
        rows.append(row)
    return rows


def _energies(weights: Weights, group: PrunableGroup, stats: CalibrationStats) -> tuple[Tensor, Tensor]:
    """Return tr(W_h H W_h^T) and tr(W_h Sigma W_h^T) by head, (G,) each, at one consumer."""
    columns = consumer_columns(group, weights)  # (C, P)
    width, units = columns.shape[1], group.num_units
    moments = per_row(group, stats, "input_unit_moment", (units, width // units, width // units))
    energy = unit_energy(columns, moments).clamp(min=0)
    fluctuation = unit_energy(columns, unit_covariance(group, stats, width)).clamp(min=0).minimum(energy)
    return energy, fluctuation
