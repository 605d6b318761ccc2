"""The report as one HTML text, of one run or of several, and as a file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from eval.report.compare import comparison
from eval.report.data import RunData, load_run
from eval.report.html import FILES, template_file
from eval.report.sections import Section, sections
from eval.report.summary import headline, summary


@dataclass(frozen=True)
class View:
    """What the page shows of one run."""

    run: RunData
    anchor: str
    by: str
    headline: str
    summary: Markup
    sections: list[Section]


def render(runs: Sequence[RunData]) -> str:
    """Return the page about one run, or that which compares several; it needs nothing beside it.

    Raises:
        ValueError: If a tensor file that a run names is missing or broken.
    """
    runs = _named_apart(runs)
    anchors = [f"run{number + 1}" for number in range(len(runs))]
    views = [
        View(run, anchor, _by(run), headline(run), summary(run), sections(run))
        for run, anchor in zip(runs, anchors, strict=True)
    ]
    style = "\n".join((FILES / name).read_text(encoding="utf-8") for name in ("chart.css", "page.css"))
    compared = comparison(runs, anchors) if len(runs) > 1 else ""
    return template_file("page.html.j2")(views=views, comparison=compared, style=Markup(style))


def build(run_dirs: Sequence[Path | str], output: Path | str) -> Path:
    """Write the page about run directories; the file appears whole or not at all.

    Args:
        run_dirs: RunData directories, each with ``report/data.json`` (see `eval.report.data`).
        output: Where to write; the name ends in ``.html``. Its folder is created.

    Returns:
        The path of the file.

    Raises:
        ValueError: If no run is given, one is missing or broken, the name does not end in ``.html``, or the file
            cannot be written.
    """
    out = Path(output)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report path {str(out)!r}: must end in .html")
    if isinstance(run_dirs, (str, Path)) or not run_dirs:
        raise ValueError(f"run_dirs: must be a list of at least one run directory, found {run_dirs!r}")
    page = render([load_run(Path(path)) for path in run_dirs])
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(out)
    except OSError as error:
        raise ValueError(
            f"report {out}: cannot be written ({error.strerror or error}); check folder and disk"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return out


def _named_apart(runs: Sequence[RunData]) -> list[RunData]:
    """Give runs of one name their folders as names, so that labels tell them apart."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({run.folder.parent.name})") if names.count(run.name) > 1 else run
        for run in runs
    ]


def _by(run: RunData) -> str:
    """Return the line under the title: model, run, data, date."""
    name = f"run {run.name}" if run.name != run.title else None
    created = re.sub(r"(?<=\d)T(?=\d)", " ", run.data.get("created") or "")
    return " · ".join(part for part in (run.data.get("model"), name, run.data.get("data"), created) if part)
