"""Observes subjects and computes metrics from what was observed.

Observing is expensive (sampling, features, predictions), computing is cheap, and the two may speak through files, so
that a subject is observed once for any number of comparisons.

An observation is a file of this package with a function ``observe(context, name, seen)``; ``seen`` is what the subject
showed before, and ``NEEDS`` names what the context and the subject must have (``NEEDS_DATA``: for the data). A metric
is a file with a function ``compute(context, seen)``; ``seen`` holds what every subject and the data showed. It says in
``READS`` which observations of each subject it is computed from, in ``READS_DATA`` which of the data, and in
``MIN_IMAGES`` how many images it takes at least. An observation for one metric alone is a function in the metric's own
file. A metric that runs the subjects side by side reads none, and its own ``NEEDS`` say what for.

So a new metric is one new file, nothing here has to know it, and what is missing is reported before anything is
measured.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.observation import Observation, Seen
from eval.types import DATA, Context

FOLDER = Path(__file__).parent
SUBJECT = ""  # any name that is not `DATA`


def available_metrics(folder: Path = FOLDER) -> list[str]:
    """Return the names of the metrics: the files of `folder` that define ``compute``; nothing is imported."""
    return sorted(path.stem for path in folder.glob("*.py") if _defines_compute(path))


def _defines_compute(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "compute" for node in body)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError unless every name is a metric, listing the valid ones; cheap enough for a recipe check."""
    valid = available_metrics()
    for name in metrics:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown metric {name!r}{hint}; valid: {', '.join(valid)}")


def needs_of(metrics: Sequence[str]) -> set[str]:
    """Return what the metrics need of the context and the subjects, e.g. ``features``."""
    check_metrics(metrics)
    found: set[str] = set()
    for metric in metrics:
        found.update(*(_needs(what, SUBJECT) for what in _reads(metric, SUBJECT) or (metric,)))
        found.update(*(_needs(what, DATA) for what in _reads(metric, DATA)))
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f"eval.{name}")


def _reads(metric: str, name: str) -> Sequence[str]:
    """Return the observations of a subject, or of the data, that a metric is computed from."""
    return getattr(_module(metric), "READS_DATA" if name == DATA else "READS", ())


def _needs(what: str, name: str) -> Sequence[str]:
    """Return what has to be there for a file to look at a subject, or at the data."""
    return getattr(_module(what), "NEEDS_DATA" if name == DATA else "NEEDS", ())


def fewest_images(metrics: Sequence[str]) -> tuple[int, str]:
    """Return how many real and generated images the most demanding metric takes at least, and which that is."""
    check_metrics(metrics)
    found = [(getattr(_module(name), "MIN_IMAGES", 1), name) for name in metrics]
    return max(found, default=(1, ""))


def observations(metrics: Sequence[str], name: str = SUBJECT) -> list[str]:
    """Return what `metrics` read of a subject, or of the data, in the order in which it is gathered."""
    check_metrics(metrics)
    return list(dict.fromkeys(what for metric in metrics for what in _reads(metric, name)))


def look(context: Context, name: str, what: str, seen: Seen) -> Observation:
    """Make one observation of a subject.

    Args:
        context: The subject, the data and the options.
        name: Name of the subject, or `DATA` for the data that all are held against.
        what: Name of the observation; see `observations`.
        seen: What the subject showed before.

    Raises:
        ValueError: For something that the context lacks or the subject does wrong.
    """
    context.check(what, _needs(what, name), [] if name == DATA else [name])
    return _module(what).observe(context, name, seen)


def _check_needs(context: Context, metric: str, name: str, missing: Sequence[str]) -> None:
    """Raise ValueError unless those of the `missing` observations that `metric` reads can be made."""
    for what in _reads(metric, name):
        if what in missing:
            context.check(metric, _needs(what, name), [] if name == DATA else [name])


def measure_all(
    context: Context, metrics: Sequence[str], *, seen: Mapping[str, Seen] | None = None
) -> dict[str, dict[str, Any]]:
    """Measure every subject of the context.

    Args:
        context: The subjects, data and options.
        metrics: Names as in `available_metrics`; they run in this order.
        seen: What subjects, and under `DATA` the data, showed before (see `look`). What is missing is looked at here.

    Returns:
        For every subject the merged results of all metrics, JSON types only.

    Raises:
        ValueError: For an unknown metric, something a metric needs and the context lacks (both before any measurement),
            or a result that is NaN or infinite.
    """
    check_metrics(metrics)
    found = {name: dict((seen or {}).get(name, {})) for name in (DATA, *context.subjects)}
    for metric in metrics:
        for name, known in found.items():
            _check_needs(context, metric, name, [what for what in _reads(metric, name) if what not in known])
        if not _reads(metric, SUBJECT):  # it runs the subjects side by side
            context.check(metric, _needs(metric, SUBJECT))
    results: dict[str, dict[str, Any]] = {name: {} for name in context.subjects}
    for metric in metrics:
        for name, known in found.items():
            for what in _reads(metric, name):
                if what not in known:
                    known[what] = look(context, name, what, known)
        for subject, values in _module(metric).compute(context, found).items():
            _check_values(values, f"subject {subject!r}, metric {metric!r}")
            clash = sorted(set(values) & set(results[subject]))
            if clash:
                raise ValueError(
                    f"metric {metric!r} returns {clash}, which another metric returned already; rename them"
                )
            results[subject] |= values
    return results


def _check_values(value: Any, place: str) -> None:
    """Raise ValueError if a number anywhere in `value` is NaN or infinite, or something is not of a JSON type."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_values(entry, f"{place}, {key}")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_values(entry, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{place}: the result is {value}; look at the samples and predictions of this subject"
        )
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise ValueError(
            f"{place}: {type(value).__name__} is not a JSON type; a metric returns plain numbers"
        )
