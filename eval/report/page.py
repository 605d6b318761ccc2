"""The report as one HTML text, of one run or of several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eval.report.compare import comparison
from eval.report.data import RunData
from eval.report.html import ENVIRONMENT
from eval.report.sections import sections
from eval.report.summary import headline, summary


def render(runs: Sequence[RunData]) -> str:
    """Return the page about one run, or that which compares several; it needs nothing beside it.

    Raises:
        ValueError: If a tensor file that a run names is missing or broken.
    """
    names = [run.name for run in runs]
    runs = [_named_by_folder(run) if names.count(run.name) > 1 else run for run in runs]
    compared = comparison(runs) if len(runs) > 1 else ""
    page = ENVIRONMENT.get_template("page.html.j2")
    return page.render(views=[_view(run) for run in runs], comparison=compared)


def _named_by_folder(run: RunData) -> RunData:
    return replace(run, data={**run.data, "name": f"{run.name} ({run.folder.parent.name})"})


def _view(run: RunData) -> dict[str, Any]:
    """Return what the page shows of one run."""
    data, title = run.data, run.data["title"]
    created = re.sub(r"(?<=\d)T(?=\d)", " ", data.get("created") or "")
    by = (data.get("model"), f"run {run.name}" if run.name != title else None, data.get("data"), created)
    return {
        "name": run.name,
        "title": title,
        "by": " · ".join(part for part in by if part),
        "headline": headline(run),
        "summary": summary(run),
        "sections": sections(run),
    }
