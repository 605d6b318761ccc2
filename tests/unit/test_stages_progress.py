"""Signs of life where no bar can be drawn."""

from __future__ import annotations

import io
import logging
import sys
import time

from pruning.stages import progress
from pruning.stages.progress import Bars, Status


def test_a_status_says_what_how_far_and_how_fast(monkeypatch):
    clock = iter([0.0, 100.0, 104.0, 110.0, 120.0, 120.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    status = Status()
    assert str(status) == "at work for 100 s"
    status.note("statistics", 64, 1024)  # at 104 s
    status.note("statistics", 128, 1024)
    assert str(status) == "statistics 128/1024, 10.7/s"  # 64 in 6 s
    status.note("denoising error", 1, 0)  # at 120 s
    assert str(status) == "denoising error 1"
    monkeypatch.setattr(time, "monotonic", lambda: 130.0)
    status.note("training", 1, 8, "loss 0.25")
    assert str(status) == "training 1/8, loss 0.25"


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


def lines(monkeypatch, caplog, bars: Bars, terminal: bool) -> list[str]:
    """Return what is logged of a stage that works for three times the interval."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with caplog.at_level(logging.INFO, logger="pruning"), bars.lines("calibrate"):
        bars("statistics", 1, 8)
        time.sleep(0.2)
    said = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) == said  # nothing after the stage
    return caplog.messages


def test_a_log_shows_life(monkeypatch, caplog):
    assert "calibrate statistics 1/8" in lines(monkeypatch, caplog, Bars(), terminal=False)


def test_a_terminal_and_quiet_get_no_lines(monkeypatch, caplog):
    assert lines(monkeypatch, caplog, Bars(), terminal=True) == []
    assert lines(monkeypatch, caplog, Bars(enabled=False), terminal=False) == []
