"""The report as one HTML text, of one run or of several."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

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
    page, views = ENVIRONMENT.get_template("page.html.j2"), [_view(run) for run in runs]
    script, digest = slider() if any("samples" in view["sections"] for view in views) else ("", "")
    return page.render(views=views, comparison=compared, script=script, script_hash=digest)


@cache
def slider() -> tuple[Markup, str]:
    """Return the one script of a page, and the hash by which the page lets it run and no other."""
    text = (Path(__file__).parent / "templates" / "slider.js").read_text(encoding="utf-8")
    return Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


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
