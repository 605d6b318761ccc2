"""Figures of a run that more than one part of the report speaks of."""

from __future__ import annotations

from typing import Any

from eval.report import fmt
from eval.report.data import RunData

LEVEL = 0.95
LEAST_LEVEL = 0.9  # an interval that covers less is not shown


def frechet_name(run: RunData) -> str:
    """Return the name of the Fréchet distance as measured (never FID unless the evaluation says so)."""
    names = [run.metric(subject, "frechet_name") for subject in run.subjects]
    return next((name for name in names if name), "Fréchet distance")


def reached(run: RunData, key: str) -> float | None:
    """Return the share of MACs or parameters that is left, as measured, else as planned."""
    measured = run.ratio(run.final, key)
    if measured is not None:
        return measured
    got = run.entry("got")
    planned = got.get(key, got.get(f"{key}_ratio"))
    return planned if is_fraction(planned) else None


def speedup(run: RunData, subject: str | None, which: str = "call") -> float | None:
    """Return the measured speed-up of `subject` over the reference, or None."""
    if subject == run.reference:
        return None
    given = run.metric(subject, f"speedup_{which}")
    own, base = run.metric(subject, which), run.metric(run.reference, which)
    return given if given is not None else base["median_s"] / own["median_s"] if own and base else None


def speedup_interval(run: RunData, subject: str | None, which: str = "call") -> str:
    """Return the interval of a speed-up with its true coverage; nothing if the rounds are too few for one."""
    interval = run.metric(subject, f"speedup_{which}_ci95")
    coverage = run.metric(subject, f"speedup_{which}_coverage")
    if not interval or (coverage is not None and coverage < LEAST_LEVEL):
        return ""
    level = min(LEVEL, coverage) if coverage is not None else LEVEL
    return f"{fmt.percent(level, 0)} {fmt.times(interval[0])} to {fmt.times(interval[1])}"


def is_fraction(value: Any) -> bool:
    """Tell whether a value is a number from 0 to 1."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
