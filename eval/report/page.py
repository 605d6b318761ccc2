"""From run directories to the two documents: reads, renders, writes atomically."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from eval.report import compare, fmt, images, tables
from eval.report.load import Run, load_run
from eval.report.svg import TEMPLATES, Figure
from eval.report.view import view


def build(run_dirs: Sequence[Path | str], out_html: Path | str) -> Path:
    """Write the report of one run, or the comparison of several, as HTML and as markdown.

    The HTML file needs nothing beside it. The markdown twin ``<stem>.md`` has its pictures in ``<stem>_files/``.
    Every file is written to a temporary name and renamed; nothing is written unless all runs could be read.

    Args:
        run_dirs: Run directories, each with ``report/data.json`` (see `eval.report.load`).
        out_html: Where to write; the name ends in ``.html``. Its folder is created.

    Returns:
        The path of the HTML file.

    Raises:
        ValueError: If no run is given, a run is missing or broken (file, place and rule are named), the name
            does not end in ``.html``, or the folder cannot be written.
    """
    out = Path(out_html)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"report path {str(out)!r}: must end in .html; the markdown twin is written beside it"
        )
    if isinstance(run_dirs, (str, Path)):
        raise ValueError(
            f"run_dirs: must be a list of run directories, found the single path {str(run_dirs)!r}"
        )
    if not run_dirs:
        raise ValueError("run_dirs: at least one run directory is needed, found none")
    runs = _named_apart([load_run(Path(path)) for path in run_dirs])
    views = [view(run, index) for index, run in enumerate(runs)]
    panels, remarks = compare.panels(runs) if len(runs) > 1 else ([], [])
    columns, rows = tables.comparison(runs) if len(runs) > 1 else ([], [])
    shared = {"views": views, "panels": panels, "remarks": remarks, "columns": columns, "rows": rows}
    page = _environment(True).get_template("report.html.j2").render(**shared, **_styles())
    twin = Twin(out.stem)
    text = _environment(False).get_template("report.md.j2").render(**shared, twin=twin, strips=images.strips)
    try:
        for name, content in twin.files.items():
            _write(out.parent / name, content)
        _write(
            out.with_suffix(".md"), re.sub(r"\n{3,}", "\n\n", text).strip().encode("utf-8", "replace") + b"\n"
        )
        _write(out, page.encode("utf-8", "replace"))
    except OSError as error:
        raise ValueError(
            f"report {out}: cannot be written ({error.strerror or error}); check folder and disk"
        ) from error
    return out


class Twin:
    """Collects the pictures of the markdown twin and hands out links to them."""

    def __init__(self, stem: str) -> None:
        self.folder = f"{stem}_files"
        self.files: dict[str, bytes] = {}

    def figure(self, figure: Figure, anchor: str = "") -> str:
        """Keep a drawing and return its markdown image."""
        name = f"{self.folder}/{anchor}{'-' if anchor else ''}{figure.name}.svg"
        self.files[name] = figure.standalone().encode("utf-8", "replace")
        return f"![{escape_markdown(figure.alt)}]({quote(name)})"

    def strip(self, subject: str, index: int, png: bytes, anchor: str) -> str:
        """Keep a strip of samples and return its markdown image."""
        name = f"{self.folder}/{anchor}-samples-{index}.png"
        self.files[name] = png
        return f"![samples of {escape_markdown(subject)}]({quote(name)})"


def _named_apart(runs: list[Run]) -> list[Run]:
    """Give runs of one name their folders as names, so that labels tell them apart."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({run.path.name})") if names.count(run.name) > 1 else run
        for run in runs
    ]


def escape_markdown(text: object) -> str:
    """Escape what markdown or HTML would read as markup; line breaks become spaces."""
    return re.sub(r"([\\`*_\[\]<>|~#$&])", r"\\\1", " ".join(str(text).split()))


def fence(text: str) -> str:
    """Return a fence of backticks longer than any run of them in `text`."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


@cache
def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=escape_markdown, fence=fence, seconds=fmt.seconds)
    return environment


def _styles() -> dict[str, Any]:
    """Return the style sheets, and the function that puts our own drawings in unescaped."""
    sheets = [(TEMPLATES / name).read_text(encoding="utf-8") for name in ("chart.css", "page.css")]
    return {"style": Markup("\n".join(sheets)), "draw": lambda figure: Markup(figure.svg)}


def _write(path: Path, content: bytes) -> None:
    """Write to a temporary name in the same folder, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
