"""What the command prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table

from pruning.errors import PruningError
from pruning.files import short, size

PIPE_WIDTH = 160
SHARES = ("macs_ratio", "params_ratio", "file_ratio")
"""Figures that say how much is left."""

_NUMBER = re.compile(r"[-+]?\d[\d,.e+-]*( ?(%|×|[a-zA-Z]{1,2}))?")


@dataclass
class Outcome:
    """What a command ends with.

    Attributes:
        data: JSON types, for ``--json``.
        tables: Drawn unless ``--json``.
        path: What was written, or where to look.
    """

    data: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    path: str | None = None


class Console:
    """Prints results and errors, and inside ``with`` also the log of this project.

    Args:
        as_json: One line of JSON in place of tables.
        quiet: No messages.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self._json = as_json
        self._level = logging.WARNING if quiet else logging.INFO
        self._before: list[tuple[logging.Logger, list[logging.Handler], int, bool]] = []
        self.progress = not quiet
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and not _says_all(stream):
                stream.reconfigure(errors="replace")  # ``?`` for what a terminal in ASCII cannot show
        width = None if sys.stdout.isatty() else PIPE_WIDTH
        self._out = RichConsole(highlight=False, soft_wrap=True, width=width)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def __enter__(self) -> Console:
        """Show the log of this project."""
        for name in ("pruning", "eval"):
            logger = logging.getLogger(name)
            self._before.append((logger, logger.handlers, logger.level, logger.propagate))
            logger.handlers, logger.propagate = [_Handler(self._err)], False
            logger.setLevel(self._level)
        return self

    def __exit__(self, *exc: object) -> None:
        while self._before:
            logger, logger.handlers, level, logger.propagate = self._before.pop()
            logger.setLevel(level)

    def finish(self, command: str, outcome: Outcome) -> None:
        """Print the end of a command: its tables and its path, or one line of JSON."""
        if self._json:
            path = {} if outcome.path is None else {"path": outcome.path}
            line = {"command": command, **outcome.data, **path}
            print(json.dumps(line, ensure_ascii=not _says_all(sys.stdout), default=str))
            return
        for table in outcome.tables:
            self._out.print(table)
        if outcome.path is not None:
            self._out.print(f"[bold]{escape(outcome.path)}[/]")

    def error(self, error: BaseException) -> None:
        """Print one clear message."""
        text = str(error).strip()
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror.lower()} (--debug shows where)"
        elif not isinstance(error, PruningError):
            text = f"{type(error).__name__}: {text} (--debug shows where)"
        self._err.print(f"[bold red]error:[/] {escape(text)}")

    def interrupted(self) -> None:
        """Say that the work was stopped and what that means."""
        self._err.print("stopped; what is done is kept, and the same command goes on from there")


def _says_all(stream: TextIO) -> bool:
    """Tell whether every character can be written to a stream."""
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")


class _Handler(logging.Handler):
    """Prints log records; tqdm's bars are left whole."""

    def __init__(self, console: RichConsole) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        from tqdm import tqdm

        mark = "[yellow]warning:[/] " if record.levelno >= logging.WARNING else ""
        with tqdm.external_write_mode(file=sys.stderr):
            self._console.print(mark + escape(record.getMessage()))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """Return a short table, numbers set to the right; lines are broken between words alone, and not in numbers."""
    drawn = Table(title=title, caption=caption, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.title_justify = drawn.caption_justify = "left"
    cells = [[str(cell) for cell in row] for row in rows]
    for position, header in enumerate(columns):
        own = [row[position] for row in cells]
        known = [cell for cell in own if cell not in ("", "–")]
        numbers = bool(known) and all(map(_NUMBER.fullmatch, known))
        least = max(map(cell_len, [*header.split(), *(own if numbers else " ".join(own).split())]), default=0)
        whole = max(map(cell_len, [header, *own]))
        drawn.add_column(
            header, justify="right" if numbers else "left", min_width=least, no_wrap=least >= whole
        )
    for row in cells:
        drawn.add_row(*map(escape, row))
    return drawn


def facts(values: dict[str, Any], title: str | None = None) -> Table:
    """Return names and values below each other; nested mappings become one line."""
    rows = [(name.replace("_", " "), text_of(value, name)) for name, value in values.items()]
    drawn = table(("", ""), rows, title)
    drawn.show_header, drawn.columns[0].style, drawn.columns[1].justify = False, "dim", "left"
    return drawn


def text_of(value: Any, name: str = "") -> str:
    """Return a value as a reader would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text_of(inner, key)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(inner) for inner in value) or "none"
    if name.startswith("file_bytes") or name == "bytes":
        return size(value)
    if name in SHARES:
        return f"{100 * value:.1f} %"
    if isinstance(value, int):
        return count(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(value: float | None) -> str:
    """Return a count in short: 35.7 M."""
    return "–" if value is None else short(value, {"T": 1e12, "G": 1e9, "M": 1e6}) or f"{value:,.0f}"
