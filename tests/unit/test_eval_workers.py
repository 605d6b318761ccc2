"""Batches side by side: order, threads and errors."""

from __future__ import annotations

import threading

import pytest
import torch

from eval.workers import side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_without_gradients(workers: int) -> None:
    weight = torch.ones(1, requires_grad=True)
    found = list(side_by_side(lambda x: weight * x, range(7), workers))
    assert [float(x) for x in found] == list(range(7))
    assert not any(x.requires_grad for x in found)
    assert next(side_by_side(lambda _: torch.is_grad_enabled(), range(2), workers)) is False
    assert torch.is_grad_enabled()


def test_workers_run_at_one_time_on_one_thread_each() -> None:
    before, both = torch.get_num_threads(), threading.Barrier(2, timeout=60)

    def meet(item: int) -> int:
        both.wait()  # breaks unless another one is here
        return torch.get_num_threads()

    assert list(side_by_side(meet, range(4), 2)) == [1] * 4
    assert torch.get_num_threads() == before


def test_items_are_drawn_as_they_are_needed() -> None:
    drawn: list[int] = []
    results = side_by_side(lambda x: x, (drawn.append(x) or x for x in range(100)), 2)  # type: ignore[func-returns-value]
    assert next(results) == 0
    assert len(drawn) <= 3
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_through_and_leave_the_threads_as_they_were(workers: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda x: 1 / x, [1, 0, 1, 1], workers))
    assert torch.get_num_threads() == before
