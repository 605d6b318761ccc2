"""One page that compares several runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pruning.errors import PruningError
from pruning.files import write_errors, write_text
from pruning.stages.folder import STAGES, RunFolder
from pruning.store import OWNER

logger = logging.getLogger(__name__)


def write_comparison(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page that compares run directories, beside them unless said otherwise; returns where it is.

    Raises:
        PruningError: If a run's data cannot be read, or the page not be written.
    """
    from eval.report import load_run, render

    output = output or _beside(runs) / "report.html"
    if output.suffix.lower() != ".html":
        raise PruningError(f"cannot write {output}: a report is a page; choose a name that ends in .html")
    try:
        page = render([load_run(path) for path in runs])
    except ValueError as error:  # eval knows no PruningError
        raise PruningError(str(error)) from error
    with write_errors("the report", output.parent, "A report that was there is whole"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    return output


def with_report(paths: list[Path]) -> list[Path]:
    """Return the run directories that have a report; ``runs/*`` also names others, of which a warning is given.

    Raises:
        PruningError: If one is not there, or none has a report.
    """
    if missing := [path for path in paths if not path.exists()]:
        raise PruningError(f"{missing[0]}: no such run directory; `sinkprune ls runs` lists those of ./runs")
    found = [path for path in paths if (path / "report" / "data.json").is_file()]
    for path in paths:
        if path not in found and (path / OWNER).is_file():
            logger.warning("%s has no report and is left out: %s", path, _unfinished(path))
    if not found:
        raise PruningError(f"{paths[0]} is not a run directory with a report; name runs that have one")
    return found


def _unfinished(path: Path) -> str:
    """Say how far a run came, and what it would take to end it."""
    done = RunFolder(path).done()
    left = [name for name in STAGES if name not in done]
    began = f"stopped after {done[-1]}" if done else "no stage is finished"
    return f"{began}; `sinkprune run {path}` would still do {', '.join(left)}"


def _beside(runs: Sequence[Path]) -> Path:
    """Return the folder that holds the runs, or the working directory where they lie apart."""
    parents = {path.resolve().parent for path in runs}
    return runs[0].parent if len(parents) == 1 else Path()
