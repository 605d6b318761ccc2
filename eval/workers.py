"""Batches side by side: on the CPU, two batches on one thread each are done sooner than one after the other on two.

Threads that share one small matrix product wait for each other; batches need not. On two cores beside other work, 256
digits of the digits DiT at five steps took two workers 5.9 to 7.6 s, and one batch on two threads 13.8 to 15.6 s (8 to
69 s where waiting threads spin); the images are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield what `function` makes of every item, in order; no gradients are recorded.

    Args:
        function: Called in several threads at a time if there are several workers.
        items: Drawn from in this thread, at most one item more than there are workers ahead of what is yielded.
        workers: Items worked on at a time, each on one CPU thread; one runs in this thread with all of torch's.
    """
    function = torch.no_grad()(function)
    if workers == 1:
        yield from map(function, items)
        return
    threads = torch.get_num_threads()
    waiting: deque[Future[R]] = deque()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # what new threads start with
