"""The tables that commands end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from pruning.cli.console import count, facts, table, text_of
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


QUALITY = {
    "excess_error": "excess error",
    "frechet": "Fréchet",
    "ssim": "SSIM",
    "spectral_error": "spectral error",
}
"""What a short table says of quality: the first two of these that were measured."""


def subjects(metrics: dict[str, dict[str, Any]]) -> Table:
    """Return one row per model: size, speed, quality."""
    name = next(iter(metrics.values()), {}).get("frechet_name")
    measured = [key for key in QUALITY if any(key in found for found in metrics.values())][:2]
    columns = ("model", "MACs", "parameters", "file", "call", "speed-up", *map(QUALITY.__getitem__, measured))
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
                *(text_of(found.get(key)) for key in measured),
            )
        )
    return table(columns, rows, title="", caption=f"Fréchet: {name}" if name else None)


def targets(plan: dict[str, Any]) -> list[Table]:
    """Return the targets of a plan with what was predicted and measured; nothing where MACs or parameters are counted.

    `plan` is what `plan_figures` says.
    """
    if not (found := plan.get("targets")):
        return []
    rows = []
    for row in found.values():
        said = row["said"]
        measured = " ".join(part for part in (said.get("measured"), _within(said.get("interval"))) if part)
        rows.append(
            (
                row["asked"],
                said["predicted"],
                measured or "–",
                said.get("gap", "–"),
                "yes" if row["binds"] else "",
            )
        )
    return [
        table(
            ("target", "predicted", "measured", "gap", "binds"),
            rows,
            "\ntargets",
            _solver(plan.get("solver")),
        )
    ]


def candidates(plan: dict[str, Any]) -> list[Table]:
    """Return what a choice among candidates came to; nothing where there was none. `plan` as for `targets`."""
    if not (found := plan.get("candidates")):
        return []
    columns = ("candidates", "plans", "chosen", "excess error", "of the recipe's own")
    row = (
        str(found["asked"]),
        str(found["measured"]),
        found["chosen"],
        text_of(found["excess_error"]),
        text_of(found["ratio"]),
    )
    return [table(columns, [row], "\ncandidates")]


def _within(interval: str | None) -> str:
    return f"({interval})" if interval else ""


def _solver(found: dict[str, Any] | None) -> str | None:
    """Say how good the plan is, where that is known."""
    if not found or "gap" not in found:
        return None
    return f"scores that go: {100 * found['gap']:.2g} % above the bound of the relaxed knapsack"


def dry_run(found: dict[str, Any]) -> list[Table]:
    """Return what may be cut by kind, and the size to be had."""
    plan = found["plan"]
    how = "by the scores of this run" if found["basis"] == "scores" else "at a uniform ratio"
    title = f"\n{found['class']} {found['model']}: what may be cut, and how many units would go {how}"
    groups = [(cut["group"], cut["total"], cut["kept"]) for cut in found["groups"]]
    depth = found["depth"]
    searched = depth and (
        f"which blocks go is then searched (prune.depth): up to {depth['sets']:,} sets of blocks are measured, "
        f"{depth['forwards']:,} forwards of one sample"
    )
    tried = found["candidates"] and (
        f"{len(found['candidates'])} candidates are then measured (prune.candidates): {'; '.join(found['candidates'])}"
    )
    earlier = found["rounds"] and (
        f"earlier rounds of cutting and training come first ({len(found['rounds'])}, prune.earlier): "
        + "; ".join(f"{one['target']}, {one['steps']:,} steps" for one in found["rounds"])
    )
    said = "\n".join(text for text in (earlier, searched, tried) if text) or None
    return [
        table(("group", "units", "would stay"), groups),
        _kinds(found["kinds"], title, caption=said),
        *targets(plan),
        _dense_and_slim(found, plan, {"file": (found["bytes"], plan["bytes"])}),
    ]


def outlook(found: dict[str, Any]) -> list[Table]:
    """Return what a model is at the input that it was made for, what may be cut, and the size to be had."""
    plan, assumed = found["plan"], found["input"]
    about = {
        "class": found["class"],
        "input": None if assumed is None else f"1 sample: {assumed}",
        "parameters": f"{found['params']:,}",
        "MACs": None if found["macs"] is None else f"{found['macs']:,} for one call",
    }
    but = " but blocks" if any(row["kind"] == "blocks" for row in found["kinds"]) else ""
    caption = f"{percent(found['free_share'])} of the parameters are in no group{but}"
    others = {"modulation layers": found["modulation"], "repeated embedders": found["repeated_embedders"]}
    if any(others.values()):
        caption += f": {', '.join(f'{percent(share)} {name}' for name, share in others.items() if share)}"
    files = {
        f"file, {name}": (size, plan and plan["bytes"][name])
        for name, size in found["bytes"].items()
        if name != "float16"
    }
    title = "\nwhat may be cut" + (", and how much would go at a uniform ratio" if plan else "")
    drawn = [facts(about), _kinds(found["kinds"], title, caption=caption, planned=plan is not None)]
    if plan:
        return [*drawn, _dense_and_slim(found, plan, files)]
    return [
        *drawn,
        table(("", "dense"), [(name, size(dense)) for name, (dense, _) in files.items()], title=""),
    ]


def _kinds(
    rows: list[dict[str, Any]], title: str, *, caption: str | None = None, planned: bool = True
) -> Table:
    """Return one row per kind of group; with what goes of it, if anything is planned."""
    shown = {
        "kind": [row["kind"] for row in rows],
        "groups": [row["groups"] for row in rows],
        "units": [f"{row['units']:,}" for row in rows],
        "of params": [percent(row["params_share"]) for row in rows],
        "of MACs": [percent(row["macs_share"]) for row in rows],
    }
    if planned:
        shown["would go"] = [f"{row['removed']:,}" for row in rows]
        if any(row["asked_ratio"] is not None for row in rows):
            shown["asked"] = [percent(row["asked_ratio"]) for row in rows]
        shown["got" if "asked" in shown else "share"] = [percent(row["got_ratio"]) for row in rows]
    return table(tuple(shown), list(zip(*shown.values(), strict=True)), title, caption)


def _dense_and_slim(found: dict[str, Any], plan: dict[str, Any], files: dict[str, tuple[int, int]]) -> Table:
    """Return parameters, MACs and sizes of files (by name: dense, slim), dense and under the plan."""
    rows = [("parameters", count(found["params"]), count(plan["params"]), percent(plan["params_ratio"]))]
    rows.append(("MACs", count(found["macs"]), count(plan["macs"]), percent(plan["macs_ratio"])))
    rows += [(name, size(dense), size(slim), percent(slim / dense)) for name, (dense, slim) in files.items()]
    title = f"\nasked: {plan['asked']}" + ("" if plan["hit"] else " (not hit; this is the nearest)")
    return table(("", "dense", "slim", "left"), rows, title)


def comparison(runs: list[Path]) -> Table:
    """Return one row per run."""
    return table(("run", *FIGURES), [(path.name, *figures(path)) for path in runs])


FIGURES = ("MACs left", "parameters left", "speed-up", "quality")


def figures(run: Path) -> tuple[str, ...]:
    """Return the figures of a run that a line of a list has room for, under `FIGURES`."""
    found = summary_of(run)
    return (
        text_of(found.get("macs_ratio"), "macs_ratio"),
        text_of(found.get("params_ratio"), "params_ratio"),
        speedup(found.get("latency_speedup")),
        _quality(found),
    )


def _quality(found: dict[str, Any]) -> str:
    """Return the measure of quality of the model that a run ends with: the first of these that was measured."""
    for key, name in (("frechet", "Fréchet"), ("ssim", "SSIM"), ("spectral_error", "spectral error")):
        for subject in ("recovered", "pruned"):
            if (value := found.get(f"{key}_{subject}")) is not None:
                return f"{name} {text_of(value)}"
    return "–"


def speedup(value: float | None) -> str:
    """Return how many times as fast a model is."""
    return "–" if value is None else f"{value:.2f} ×"


def percent(value: float | None) -> str:
    """Return a share in per cent."""
    return "–" if value is None else f"{100 * value:.1f} %"
