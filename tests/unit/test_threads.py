"""Jobs side by side: order, room and threads."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pruning import threads
from pruning.threads import side_by_side


def test_results_come_in_the_order_of_the_jobs():
    delays = [0.05, 0.0, 0.02, 0.0]
    jobs = [(1, lambda d=d: time.sleep(d) or d) for d in delays]
    assert list(side_by_side(jobs, threads=3)) == delays


@pytest.mark.parametrize(
    ("memory", "spare", "at_once"),
    [(100, 0, 1), (250, 0, 2), (10_000, 0, 3), (1, 10_000, 1), (None, 250, 2), (None, 0, 1)],
)
def test_no_more_run_at_once_than_have_room(
    memory: int | None, spare: int, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    """Unless it is said, room is what a process may take."""
    monkeypatch.setattr(threads, "spare_bytes", lambda device: spare)
    running, most, lock = 0, 0, threading.Lock()

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1

    assert list(side_by_side([(100, job)] * 7, memory, 3)) == [None] * 7
    assert most == at_once


def test_jobs_have_one_thread_each_and_no_gradients_and_leave_the_setting_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = list(side_by_side([(0, lambda: (torch.get_num_threads(), torch.is_grad_enabled()))] * 4))
        assert seen == [(1, False)] * 4
        assert torch.get_num_threads() == 2
        later: list[int] = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_what_a_job_raises_reaches_the_caller_and_no_further_job_starts():
    started: list[int] = []

    def job(k: int) -> None:
        started.append(k)
        if k == 1:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(side_by_side(((0, lambda k=k: job(k)) for k in range(20)), threads=1))
    assert len(started) < 5
