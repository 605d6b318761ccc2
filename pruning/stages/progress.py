"""Signs of life: bars on a terminal, and elsewhere (a log of CI) one plain line every quarter of a minute."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging as diffusers_logging
import transformers.utils.logging as transformers_logging
from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 15.0


class Status:
    """How far a stage is, in words: ``training 40/150, 2.1/s``."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._now: tuple[str, int, int, str] = ("", 0, 0, "")
        self._first: tuple[int, float] = (0, self._began)

    def note(self, what: str, done: int, total: int, more: str = "") -> None:
        """Take down that `done` of `total` are done; a total of 0 is unknown."""
        if what != self._now[0]:
            self._first = (done, time.monotonic())
        self._now = (what, done, total, more)

    def __str__(self) -> str:
        (what, done, total, more), (first, since), now = self._now, self._first, time.monotonic()
        if not what:
            return f"at work for {now - self._began:.0f} s"
        rate = f", {(done - first) / (now - since):.3g}/s" if done > first and now > since else ""
        return f"{what} {done}{f'/{total}' if total else ''}{rate}{more and f', {more}'}"


class Bars:
    """One bar at a time, driven by calls ``(what, done, total)`` or ``(what, done, total, more)``, words to show.

    Args:
        enabled: Draw at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._bar: tqdm | None = None
        self._what = ""
        self._status = Status()

    @contextmanager
    def lines(self, stage: str) -> Iterator[None]:
        """Log how far `stage` is, every `LINE_SECONDS`, where no bar can be drawn."""
        self._status = Status()
        if not self.enabled or sys.stderr.isatty():
            yield
            return
        over = threading.Event()

        def speak() -> None:
            while not over.wait(LINE_SECONDS):
                logger.info("%-9s %s", stage, self._status)

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            over.set()
            speaker.join()

    def __call__(self, what: str, done: int, total: int, more: str = "") -> None:
        """Show that `done` of `total` are done; a total of 0 is unknown."""
        self._status.note(what, done, total, more)
        if not self.enabled:
            return
        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            self._bar = tqdm(
                total=total or None,
                initial=done,
                postfix=more or None,
                desc=f"  {what}",
                file=sys.stderr,
                disable=None,
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
        self._bar, self._what = None, ""


@contextmanager
def without_library_bars(quiet: bool = False) -> Iterator[None]:
    """Keep the loading bars of diffusers and transformers out of logs; on a terminal they stay, unless `quiet`."""
    libraries = [diffusers_logging, transformers_logging]
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    shown = shown if quiet or not sys.stderr.isatty() else []
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
