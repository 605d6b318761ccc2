"""The tables that commands end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from pruning.cli.console import count, size, table, text_of
from pruning.files import read_json
from pruning.stages.folder import RunFolder

Metrics = dict[str, dict[str, Any]]


def stages(folder: RunFolder) -> Table:
    """Return the stages of a run that are done."""
    rows = []
    for name in folder.done():
        manifest = folder.manifest(name)
        rows.append((name, f"{manifest['seconds']:.1f} s", manifest["finished"].replace("T", " ")))
    return table(("stage", "took", "finished"), rows)


def subjects(metrics: Metrics) -> Table:
    """Return one row per model: size, speed, quality."""
    dense = next(iter(metrics.values()))
    name = dense.get("frechet_name") or "Fréchet distance"
    columns = ("model", "MACs", "parameters", "file", "call", "speed-up", "excess error", name)
    rows = []
    for subject, found in metrics.items():
        call = (found.get("call") or {}).get("median_s")
        speed = found.get("speedup_call")
        rows.append(
            (
                subject,
                count(found.get("macs")),
                count(found.get("params")),
                size(found.get("file_bytes")),
                "–" if call is None else f"{1e3 * call:.3g} ms",
                "–" if speed is None else f"{speed:.2f} ×",
                text_of(found.get("excess_error")),
                text_of(found.get("frechet")),
            )
        )
    return table(columns, rows, title="")


def dry_run(found: dict[str, Any]) -> list[Table]:
    """Return what may be cut by kind, and the size to be had."""
    plan = found["plan"]
    kinds = [
        (
            row["kind"],
            row["groups"],
            f"{row['units']:,}",
            f"{row['removed']:,}",
            f"{100 * row['params_share']:.1f} %",
            f"{100 * row['macs_share']:.1f} %",
        )
        for row in found["kinds"]
    ]
    how = "by the scores of this run" if found["basis"] == "scores" else "at a uniform ratio"
    budget = table(
        ("kind", "groups", "units", "would go", "has of all parameters", "of all MACs"),
        kinds,
        title=f"\n{found['class']} {found['model']}: what may be cut, and how many units would go {how}",
    )
    sizes = table(
        ("", "dense", "slim", "left"),
        [
            (
                "parameters",
                count(found["params"]),
                count(plan["params"]),
                f"{100 * plan['params_ratio']:.1f} %",
            ),
            ("MACs", count(found["macs"]), count(plan["macs"]), f"{100 * plan['macs_ratio']:.1f} %"),
            ("file", size(found["bytes"]), size(plan["bytes"]), f"{100 * plan['params_ratio']:.1f} %"),
        ],
        title=f"\nasked: {plan['asked']}" + ("" if plan["hit"] else " (not hit; this is the nearest)"),
    )
    groups = [(cut["group"], cut["total"], cut["kept"]) for cut in found["groups"]]
    return [table(("group", "units", "would stay"), groups), budget, sizes]


def comparison(runs: list[Path]) -> Table:
    """Return one row per run."""
    rows = []
    for path in runs:
        found = read_json(path / "summary.json") or {}
        last = found.get("frechet_recovered") or found.get("frechet_pruned")
        values = (found.get("macs_ratio"), found.get("params_ratio"), found.get("latency_speedup"), last)
        keys = ("macs_ratio", "params_ratio", "", "")
        rows.append((path.name, *(text_of(value, key) for value, key in zip(values, keys, strict=True))))
    return table(("run", "MACs left", "parameters left", "speed-up", "Fréchet distance"), rows)
