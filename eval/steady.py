"""A heap that keeps its pages while something is timed.

On Linux the allocator of the C library gives memory back to the system when enough of it is free at the top of its
heap, and takes large blocks from the system one by one. Whether a tensor of a call then lands on pages that the system
has to make anew depends on the sizes of all tensors around it, and with it the time of layers that are the same in two
models: 1.3 times as long was seen, in some plans and not in others. A process that serves a model does not pay that,
for its allocator is set to keep pages, or is another one. Accelerators have a caching allocator already.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRIM, PAD, MAP = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h
MEGABYTE = 1 << 20
KEPT = {MAP: 1024 * MEGABYTE, TRIM: 2047 * MEGABYTE, PAD: 64 * MEGABYTE}
USUAL = {MAP: 32 * MEGABYTE, TRIM: 64 * MEGABYTE, PAD: 128 << 10}
"""What the C library comes to by itself in a process that has large tensors; its first values cannot be had back."""


def _allocator() -> tuple[Callable[[int, int], int], Callable[[int], int]] | None:
    """Return ``mallopt`` and ``malloc_trim`` of the C library, None where it has none."""
    try:
        library = ctypes.CDLL(None)
        return library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


@contextmanager
def steady_heap() -> Iterator[bool]:
    """Let the process keep the memory that it has had; yields whether it can. Afterwards free memory is given back."""
    found = _allocator()
    if found is None:
        yield False
        return
    mallopt, trim = found
    try:
        done = [mallopt(option, value) for option, value in KEPT.items()]
        yield all(done)
    finally:
        for option, value in USUAL.items():
            mallopt(option, value)
        trim(0)
