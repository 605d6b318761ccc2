"""The figures of a run: ``summary.json``, from what the stages wrote down. Reads files alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.files import read_json, write_json
from pruning.stages.folder import RunFolder

SUMMARY = "summary.json"
CONSISTENCY = ("ssim", "mse", "waveform_error", "spectral_error", "pair_pixels", "pair_features")
"""What is measured between the samples of a slim model and those of the dense one; which, says the medium."""


def write_summary(folder: RunFolder) -> dict[str, Any]:
    """Write ``summary.json`` anew and return it: the figures of a run; those that have not been measured are None.

    ``macs_ratio``, ``params_ratio`` (shares of the dense model) and ``file_bytes_pruned`` are of the model that the run
    ends with (recovered, or pruned where recovery is switched off), ``latency_speedup`` is of one of its calls,
    ``seconds`` is the time of all stages, those included that were reused. An interval is None where the rounds were
    too few for one of 95 %. ``candidates`` is there where the plan was chosen among several: how many were ``asked``
    for and ``measured``, the name of the ``chosen`` one, its ``excess_error`` before training on samples that
    calibration did not see, and the ``ratio`` to that of the recipe's own plan. ``ssim_pruned``, ``mse_recovered`` and
    so on, with their intervals, are there where they were measured. ``provenance`` says of each stage which result it
    was, and how it came about.
    """
    metrics = measured(folder)
    plan = folder.manifest("plan").get("result", {})
    dense = metrics.get("dense", {})
    final = metrics.get("recovered") or metrics.get("pruned", {})
    seconds = {stage: folder.manifest(stage)["seconds"] for stage in folder.done()}
    summary = {
        **{
            f"frechet_{name}": metrics.get(name, {}).get("frechet")
            for name in ("dense", "pruned", "recovered")
        },
        "macs_ratio": _ratio(final.get("macs"), dense.get("macs")) or planned(plan, "macs_ratio"),
        "latency_speedup": final.get("speedup_call"),
        "params_ratio": _ratio(final.get("params"), dense.get("params")) or planned(plan, "params_ratio"),
        "file_bytes_dense": dense.get("file_bytes"),
        "file_bytes_pruned": final.get("file_bytes"),
        "seconds": round(sum(seconds.values()), 1),
        "file_ratio": _ratio(final.get("file_bytes"), dense.get("file_bytes")),
        "frechet_ratio": final.get("frechet_ratio"),
        "frechet_name": dense.get("frechet_name"),
        **{f"frechet_{name}_ci95": interval(found, "frechet") for name, found in metrics.items()},
        "frechet_ratio_ci95": interval(final, "frechet_ratio"),
        "frechet_detectable": final.get("frechet_detectable"),
        "latency_speedup_ci95": interval(final, "speedup_call"),
        "sampling_speedup": final.get("speedup_sampling"),
        "sampling_speedup_ci95": interval(final, "speedup_sampling"),
        "excess_error": final.get("excess_error"),
        "excess_error_ci95": interval(final, "excess_error"),
        **_consistency(metrics),
        "asked": plan.get("asked"),
        "hit": plan.get("hit"),
        **({"candidates": plan["candidates"]} if "candidates" in plan else {}),
        "seconds_by_stage": seconds,
        "provenance": {stage: origin(folder.manifest(stage)) for stage in seconds},
    }
    write_json(folder.path / SUMMARY, summary)
    return summary


def origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stage's manifest says of how its result came about; its name is that in the store."""
    known = {key: manifest[key] for key in ("finished", "seed", "device", "versions") if key in manifest}
    return {"result": f"{manifest['kind']}/{manifest['id']}", **known}


def _consistency(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how alike the samples of each slim model are to those of the dense one, before and after recovery."""
    shown: dict[str, Any] = {}
    for name in ("pruned", "recovered"):
        found = metrics.get(name, {})
        for key in (key for key in CONSISTENCY if key in found):
            shown |= {f"{key}_{name}": found[key], f"{key}_{name}_ci95": interval(found, key)}
    return shown


def summary_of(run: Path) -> dict[str, Any]:
    """Return what ``summary.json`` of a run directory says, nothing if there is none."""
    return read_json(run / SUMMARY) or {}


def measured(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return what the stage ``evaluate`` measured, by subject; empty if it has not, or its files were changed since."""
    result = folder.result("evaluate")
    if result is None or result.damage():
        return {}
    return read_json(folder.stage("evaluate") / "metrics.json") or {}


def interval(found: Mapping[str, Any], key: str) -> list[float] | None:
    """Return the interval of a figure of one subject, None where it covers less than the 95 % that its name says."""
    bounds, coverage = found.get(f"{key}_ci95"), found.get(f"{key}_coverage")
    return bounds if coverage is None or coverage >= 0.95 else None


def planned(plan: Mapping[str, Any], key: str) -> float | None:
    """Return a share of the dense model that a plan leaves; its own share is of a slim one, where that was cut."""
    return plan.get(f"{key}_of_dense", plan.get(key))


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
