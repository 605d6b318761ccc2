"""Signs of life: bars on a terminal, and elsewhere (a log of CI) one plain line every quarter of a minute."""

from __future__ import annotations

import importlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 15.0
LINE = "{desc} {n_fmt}/{total_fmt}, {rate_fmt}{postfix}"


class Bars:
    """One bar at a time, driven by calls ``(what, done, total)`` or ``(what, done, total, more)``, words to show.

    Args:
        enabled: Show anything at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._bar: tqdm | None = None

    @contextmanager
    def lines(self, stage: str) -> Iterator[None]:
        """Log how far `stage` is, every `LINE_SECONDS`, where no bar can be drawn."""
        if not self.enabled or sys.stderr.isatty():
            yield
            return
        over, began = threading.Event(), time.monotonic()

        def speak() -> None:
            while not over.wait(LINE_SECONDS):
                bar = self._bar
                said = f"at work for {time.monotonic() - began:.0f} s" if bar is None else str(bar)
                logger.info("%-9s %s", stage, said)

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            over.set()
            speaker.join()
            self.close()

    def __call__(self, what: str, done: int, total: int, more: str = "") -> None:
        """Show that `done` of `total` are done; a total of 0 is unknown."""
        if not self.enabled:
            return
        if self._bar is None or what != self._bar.desc:
            self.close()
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                total=total or None,
                initial=done,
                desc=what,
                postfix=more or None,
                file=sys.stderr if terminal else io.StringIO(),  # where it is kept for the lines of a log
                bar_format=None if terminal else LINE,
                mininterval=0.1 if terminal else LINE_SECONDS,
                leave=False,
                dynamic_ncols=True,
            )
        self._bar.set_postfix_str(more, refresh=False)
        self._bar.update(done - self._bar.n)
        if total and done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


@contextmanager
def without_library_bars(quiet: bool = False) -> Iterator[None]:
    """Keep the loading bars of diffusers and transformers out of logs; on a terminal they stay, unless `quiet`."""
    libraries = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    shown = shown if quiet or not sys.stderr.isatty() else []
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
