"""How many threads torch works in: jobs side by side, one each, as many at once as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from pruning.memory import spare_bytes

T = TypeVar("T")


def side_by_side(
    jobs: Iterable[tuple[int, Callable[[], T]]], memory: int | None = None, threads: int | None = None
) -> Iterator[T]:
    """Run jobs in threads of their own, without gradients, and yield their results in order.

    A job has one thread whatever runs beside it, so that its result does not depend on that. Chains of small steps
    gain little from several threads, jobs that are independent all there is to gain.

    Args:
        jobs: Bytes that a job needs, and what to call; taken in the caller's thread when there is room.
        memory: Bytes that all running jobs may need together; one that needs more runs alone. None for most of what
            is free.
        threads: Jobs at once; None for the threads that torch may use here.
    """
    allowed = torch.get_num_threads()
    threads = threads or allowed
    room = spare_bytes("cpu") if memory is None else memory
    running: dict[Future[T], int] = {}
    results: deque[Future[T]] = deque()
    try:
        with ThreadPoolExecutor(threads) as pool:
            for need, job in jobs:
                while running and (len(running) >= threads or sum(running.values()) + need > room):
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                    while results and results[0].done():
                        yield results.popleft().result()
                future = pool.submit(_alone, job)
                running[future] = need
                results.append(future)
            while results:
                yield results.popleft().result()
    finally:
        torch.set_num_threads(allowed)  # for threads that start later; those of this one were never changed


def _alone(job: Callable[[], T]) -> T:
    torch.set_num_threads(1)
    with torch.no_grad():
        return job()
