"""The report as one HTML text, of one run or of several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from eval.report.compare import comparison
from eval.report.data import RunData
from eval.report.html import FILES, template_file
from eval.report.sections import sections
from eval.report.summary import headline, summary


def render(runs: Sequence[RunData]) -> str:
    """Return the page about one run, or that which compares several; it needs nothing beside it.

    Raises:
        ValueError: If a tensor file that a run names is missing or broken.
    """
    runs = _named_apart(runs)
    anchors = [f"run{number}" for number in range(1, len(runs) + 1)]
    views = [_view(run, anchor) for run, anchor in zip(runs, anchors, strict=True)]
    style = "\n".join((FILES / name).read_text(encoding="utf-8") for name in ("chart.css", "page.css"))
    compared = comparison(runs, anchors) if len(runs) > 1 else ""
    return template_file("page.html.j2")(views=views, comparison=compared, style=Markup(style))


def _named_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Give runs of one name their folders as names, so that labels tell them apart."""
    names = [run.name for run in runs]
    return [
        replace(run, data={**run.data, "name": f"{run.name} ({run.folder.parent.name})"})
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def _view(run: RunData, anchor: str) -> dict[str, Any]:
    """Return what the page shows of one run."""
    data, title = run.data, run.data["title"]
    created = re.sub(r"(?<=\d)T(?=\d)", " ", data.get("created") or "")
    by = (data.get("model"), f"run {run.name}" if run.name != title else None, data.get("data"), created)
    return {
        "name": run.name,
        "title": title,
        "anchor": anchor,
        "by": " · ".join(part for part in by if part),
        "headline": headline(run),
        "summary": summary(run),
        "sections": sections(run),
    }
