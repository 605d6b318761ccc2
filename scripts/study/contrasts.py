"""What the published rows say: arms by calibration set, and the contrasts between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from study.inference import Contrast, geometric_mean, paired
from study.subjects import (
    DECIDING,
    DEFAULT,
    LOOKING,
    RATIO,
    RECOVERED,
    RIVALS,
    SIGNS,
    SUBJECTS,
    recovered_scope,
)

Row = Mapping[str, Any]


def by_set(
    rows: Iterable[Row],
    model: str,
    criterion: str,
    sets: Iterable[int],
    *,
    value: str = "excess_error",
    **where: Any,
) -> dict[int, float]:
    """Return the excess error of an arm by calibration set; the mean over draws where there are several.

    Args:
        rows: Published rows.
        model: Name of the subject.
        criterion: Name of the criterion.
        sets: Calibration sets to look at.
        value: Another field to return instead, such as ``frechet``.
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
            found[row["seed"]].append(row[value])
    return {seed: geometric_mean(errors) for seed, errors in found.items()}


def best_rival(rows: Iterable[Row], model: str) -> str | None:
    """Return the rival with the lowest error on the sets for looking around; they decide nothing else."""
    rows = list(rows)
    means = {}
    for name in RIVALS:
        errors = by_set(rows, model, name, LOOKING)
        if len(errors) == len(LOOKING):
            means[name] = geometric_mean(errors.values())
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


def recovered(rows: Iterable[Row], ratio: float = RATIO, value: str = "frechet") -> list[Contrast]:
    """Return the default against every other arm that was trained back as long, on the Fréchet distance after it.

    Args:
        rows: Published rows.
        ratio: MACs that stay.
        value: Another field to compare, such as ``frechet_before`` or ``excess_error``.
    """
    rows = [row for row in rows if row["recovered"]]
    found = []
    for model in SUBJECTS:
        errors = {
            criterion: by_set(
                rows,
                model,
                criterion,
                DECIDING,
                value=value,
                omega=omega,
                recovered=True,
                macs_ratio=ratio,
                scope=recovered_scope(criterion, ratio),
            )
            for criterion, omega in RECOVERED
        }
        ours = errors.pop(DEFAULT[0])
        found += [paired(model, DEFAULT[0], name, ours, theirs) for name, theirs in errors.items()]
    return [contrast for contrast in found if contrast is not None]


def omega_contrasts(rows: Iterable[Row]) -> list[Contrast]:
    """Return what row weights of each sign do to `probe_obs`, and S2's to `obs`; against none and permuted ones."""
    rows = list(rows)
    found = []
    for model in SUBJECTS:
        plain = by_set(rows, model, "probe_obs", DECIDING)
        for u, s in SIGNS:
            real, permuted = (
                by_set(rows, model, "probe_obs", DECIDING, omega=omega, unstable=u, stable=s)
                for omega in ("on", "permuted")
            )
            name = f"({u:g}, {s:g})"
            found += [
                paired(model, name, "none", real, plain),
                paired(model, name, "permuted", real, permuted),
            ]
        broadcast, shuffled = (
            by_set(rows, model, "obs", DECIDING, omega=omega) for omega in ("influence", "influence_permuted")
        )
        found += [
            paired(model, "S2, `obs`", "none", broadcast, by_set(rows, model, "obs", DECIDING)),
            paired(model, "S2, `obs`", "permuted", broadcast, shuffled),
        ]
    return [contrast for contrast in found if contrast is not None]


def arms(rows: Iterable[Row], model: str) -> list[tuple[str, str]]:
    """Return criterion and omega of the arms measured on a model, the default first."""
    found = {
        (row["criterion"], row["omega"])
        for row in rows
        if row["model"] == model and row["omega"] in ("off", "on") and not row["recovered"]
    }
    return sorted(found, key=lambda arm: (arm != DEFAULT, arm))


def told(contrast: Contrast | None) -> str:
    """Return a contrast as a change in per cent with its interval; nothing for None."""
    if contrast is None:
        return ""
    mid, low, high = contrast.percent
    return f"{mid:+.1f} ({low:+.1f} to {high:+.1f})"
