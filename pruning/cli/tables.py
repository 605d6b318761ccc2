"""The tables that commands end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from pruning.cli.console import count, table, text_of
from pruning.files import size
from pruning.stages.folder import RunFolder
from pruning.stages.summary import summary_of


def stages(folder: RunFolder) -> Table:
    """Return the stages of a run that are done."""
    rows = []
    for name in folder.done():
        manifest = folder.manifest(name)
        rows.append((name, f"{manifest['seconds']:.1f} s", manifest["finished"].replace("T", " ")))
    return table(("stage", "took", "finished"), rows)


def subjects(metrics: dict[str, dict[str, Any]]) -> Table:
    """Return one row per model: size, speed, quality."""
    name = next(iter(metrics.values()), {}).get("frechet_name")
    columns = ("model", "MACs", "parameters", "file", "call", "speed-up", "excess error", "Fréchet")
    rows = []
    for subject, found in metrics.items():
        call = (found.get("call") or {}).get("median_s")
        rows.append(
            (
                subject,
                count(found.get("macs")),
                count(found.get("params")),
                size(found.get("file_bytes")),
                "–" if call is None else f"{1e3 * call:.3g} ms",
                speedup(found.get("speedup_call")),
                text_of(found.get("excess_error")),
                text_of(found.get("frechet")),
            )
        )
    return table(columns, rows, title="", caption=f"Fréchet: {name}" if name else None)


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
    sizes = [
        (name, show(found[key]), show(plan[key]), f"{100 * plan[ratio]:.1f} %")
        for name, key, show, ratio in (
            ("parameters", "params", count, "params_ratio"),
            ("MACs", "macs", count, "macs_ratio"),
            ("file", "bytes", size, "params_ratio"),
        )
    ]
    title = f"\nasked: {plan['asked']}" + ("" if plan["hit"] else " (not hit; this is the nearest)")
    groups = [(cut["group"], cut["total"], cut["kept"]) for cut in found["groups"]]
    return [
        table(("group", "units", "would stay"), groups),
        budget,
        table(("", "dense", "slim", "left"), sizes, title),
    ]


def comparison(runs: list[Path]) -> Table:
    """Return one row per run."""
    return table(("run", *FIGURES), [(path.name, *figures(path)) for path in runs])


FIGURES = ("MACs left", "parameters left", "speed-up", "Fréchet")


def figures(run: Path) -> tuple[str, ...]:
    """Return the figures of a run that a line of a list has room for, under `FIGURES`."""
    found = summary_of(run)
    return (
        text_of(found.get("macs_ratio"), "macs_ratio"),
        text_of(found.get("params_ratio"), "params_ratio"),
        speedup(found.get("latency_speedup")),
        text_of(found.get("frechet_recovered") or found.get("frechet_pruned")),
    )


def speedup(value: float | None) -> str:
    """Return how many times as fast a model is."""
    return "–" if value is None else f"{value:.2f} ×"
