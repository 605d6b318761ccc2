"""Runs metrics by name: a metric is a file of this folder with a top-level function ``measure(context)``.

A metric may also list in ``NEEDS`` what it reads of the context and the subjects, and say in ``MIN_IMAGES`` how many
images it takes at least, so that something missing is reported before anything is measured. A new metric is one new
file; nothing here has to know it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.types import Context

FOLDER = Path(__file__).parent


def available_metrics(folder: Path = FOLDER) -> list[str]:
    """Return the names of the metrics: the files of `folder` that define ``measure``; nothing is imported."""
    return sorted(path.stem for path in folder.glob("*.py") if _defines_measure(path))


def _defines_measure(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in body)


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError unless every name is a metric, listing the valid ones; cheap enough for a recipe check."""
    valid = available_metrics()
    for name in metrics:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown metric {name!r}{hint}; valid: {', '.join(valid)}")


def needs_of(metrics: Sequence[str]) -> set[str]:
    """Return what the metrics read of the context and the subjects, e.g. ``features``."""
    check_metrics(metrics)
    modules = [importlib.import_module(f"eval.{name}") for name in metrics]
    return {need for module in modules for need in getattr(module, "NEEDS", ())}


def fewest_images(metrics: Sequence[str]) -> tuple[int, str]:
    """Return how many real and generated images the most demanding metric takes at least, and which that is."""
    check_metrics(metrics)
    found = [(getattr(importlib.import_module(f"eval.{name}"), "MIN_IMAGES", 1), name) for name in metrics]
    return max(found, default=(1, ""))


def measure_all(
    context: Context, metrics: Sequence[str], *, on_start: Callable[[str], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Measure every subject of the context.

    Args:
        context: The subjects, data and options; images and features are computed once and shared.
        metrics: Names as in `available_metrics`; they run in this order.
        on_start: Called with the name of each metric before it runs.

    Returns:
        For every subject the merged results of all metrics, JSON types only.

    Raises:
        ValueError: For an unknown metric, something a metric needs and the context lacks (both before any measurement),
            or a result that is NaN or infinite.
    """
    check_metrics(metrics)
    modules = {name: importlib.import_module(f"eval.{name}") for name in metrics}
    for name, module in modules.items():
        context.check(name, getattr(module, "NEEDS", ()))
    results: dict[str, dict[str, Any]] = {name: {} for name in context.subjects}
    for metric, module in modules.items():
        if on_start is not None:
            on_start(metric)
        for subject, values in module.measure(context).items():
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
