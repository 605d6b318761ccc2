"""The memory pages of weights that lie in files: which are read ahead, and which go back to the system (Linux).

A weight that was loaded without being read is a private map of its file: a page is read when it is first touched, and
a page that was written to is a copy that the file knows nothing of. So only pages that nobody has written to may be
given back; the kernel says which these are (``/proc/self/pagemap``: a page of the file, or a copy).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from bisect import bisect
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor

_OF_FILE, _SWAPPED, _PRESENT = (np.uint64(1) << np.uint64(bit) for bit in (61, 62, 63))
"""Bits of an entry of the page map; see ``Documentation/admin-guide/mm/pagemap.rst`` of Linux."""

LARGE = 2**25
"""Bytes from which memory is the system's own for this purpose, so that its pages are new."""

_PRIVATE_MAP = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r[w-].p [0-9a-f]+ \S+ ([1-9]\d*) ")


@cache
def madvise() -> Callable[[int, int, int], int] | None:
    """Return the system call of that name (address, bytes, advice); None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    found = ctypes.CDLL(None, use_errno=True).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found  # type: ignore[no-any-return]


class FilePages:
    """The private maps of files that this process has when this is made.

    Attributes:
        known: Whether the system says which these are; else none is held here, though there may be some.
    """

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.known = madvise() is not None and os.access("/proc/self/pagemap", os.R_OK)
        if self.known:
            with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
                found = [match for line in lines if (match := _PRIVATE_MAP.match(line))]
            self._ranges = [
                (int(match[1], 16), int(match[2], 16)) for match in found
            ]  # in order of addresses

    def hold(self, tensor: Tensor) -> bool:
        """Tell whether the values of a tensor lie in one of them, one after the other."""
        if tensor.device.type != "cpu" or not tensor.nbytes or not tensor.is_contiguous():
            return False
        start, stop = _span(tensor)
        place = bisect(self._ranges, (start, sys.maxsize)) - 1
        return place >= 0 and stop <= self._ranges[place][1]


def read_ahead(tensors: Iterable[Tensor]) -> None:
    """Ask the system to read what the pages of these tensors hold, without waiting for it."""
    advise = madvise()
    for tensor in tensors:
        start, stop = _pages(tensor)
        if advise is not None:
            advise(start, stop - start, mmap.MADV_WILLNEED)


def give_back(tensors: Iterable[Tensor]) -> None:
    """Give the pages of tensors that `FilePages` hold back to the system, which can read them again.

    Those that were written to stay.
    """
    advise = madvise()
    if advise is None:
        return
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        for tensor in tensors:
            start, stop = _pages(tensor)
            pages.seek(start // mmap.PAGESIZE * 8)
            entries = np.frombuffer(pages.read((stop - start) // mmap.PAGESIZE * 8), dtype=np.uint64)
            there = (entries & (_PRESENT | _SWAPPED)) != 0
            written = there & ((entries & _OF_FILE) == 0)
            borders = np.flatnonzero(np.diff(written)) + 1
            for run in np.split(np.arange(len(written)), borders):
                if len(run) and not written[run[0]]:
                    advise(start + int(run[0]) * mmap.PAGESIZE, len(run) * mmap.PAGESIZE, mmap.MADV_DONTNEED)


def in_large_pages(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return new memory on the CPU for a tensor's values in `dtype`, as `torch.empty_like`.

    Where the system may, it is made of pages of 2 MB, which take a tenth of the time that small ones do.
    """
    made = torch.empty_like(like, dtype=dtype, device="cpu")
    advise = madvise()
    if advise is not None and hasattr(mmap, "MADV_HUGEPAGE") and made.nbytes >= LARGE:
        start, stop = _pages(made)
        advise(start, stop - start, mmap.MADV_HUGEPAGE)
    return made


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte of a tensor and of that after its last; it is contiguous."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def _pages(tensor: Tensor) -> tuple[int, int]:
    """Return the address of the first page in which a tensor lies, and of that after the last."""
    start, stop = _span(tensor)
    return start // mmap.PAGESIZE * mmap.PAGESIZE, -(-stop // mmap.PAGESIZE) * mmap.PAGESIZE
