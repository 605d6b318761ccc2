"""Signs of life where no bar can be drawn."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

from pruning.stages import progress
from pruning.stages.progress import Bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_how_far_and_what_more_there_is_to_say_on_a_terminal_only(monkeypatch):
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        monkeypatch.setattr(sys, "stderr", stream)
        bars = Bars()
        for step in (1, 2):
            bars("training", step, 2, "loss 0.2500, 120 images/s")
    assert "loss 0.2500, 120 images/s" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()
    assert file.getvalue() == ""


def lines(monkeypatch, caplog, bars: Bars, terminal: bool, counted: bool = True) -> list[str]:
    """Return what is logged of a stage that works for four times the interval."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with caplog.at_level(logging.INFO, logger="pruning"), bars.lines("calibrate"):
        for done in (1, 5):
            if counted:
                bars("statistics", done, 8, "loss 0.25")
            time.sleep(0.1)
    said = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) == said  # nothing after the stage
    return caplog.messages


def test_a_log_shows_life(monkeypatch, caplog):
    said = lines(monkeypatch, caplog, Bars(), terminal=False)
    assert any(re.fullmatch(r"calibrate statistics 5/8, +\d+\.\d+it/s, loss 0\.25", line) for line in said)


def test_a_log_shows_life_of_what_cannot_be_counted(monkeypatch, caplog):
    said = lines(monkeypatch, caplog, Bars(), terminal=False, counted=False)
    assert any(re.fullmatch(r"calibrate at work for \d+ s", line) for line in said)


def test_a_terminal_and_quiet_get_no_lines(monkeypatch, caplog):
    assert lines(monkeypatch, caplog, Bars(), terminal=True) == []
    assert lines(monkeypatch, caplog, Bars(enabled=False), terminal=False) == []
