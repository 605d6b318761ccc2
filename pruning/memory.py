"""Memory of a device: how much this process may take, how much it holds, and the most that a piece of work held."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import torch

MOST = 0.8
"""Share of what is free that is taken where nobody says how much may be."""

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may hold."""

EVERY = 0.002
"""Seconds between two looks at the memory of a process."""


def usable_bytes(device: torch.device | str) -> int:
    """Return how much this process may hold on a device in all: what it holds already, and most of what is free."""
    return held_bytes(device) + spare_bytes(device)


def spare_bytes(device: torch.device | str) -> int:
    """Return how much this process may take on a device beyond what it holds: most of what is free."""
    device = torch.device(device)
    held = held_bytes(device)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    else:
        free = min([psutil.virtual_memory().available, *(limit - held for limit in _limits())])
    return int(MOST * max(0, free))


def held_bytes(device: torch.device | str) -> int:
    """Return how much this process holds on a device; what shares the CPU's memory counts as the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


class Peak(AbstractContextManager["Peak"]):
    """Finds the most that this process held on a device while the block ran.

    Args:
        device: The device.

    Attributes:
        before: Bytes held at the start.
        bytes: The most, bytes; known when the block has ended.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self.before = self.bytes = 0
        self._done = threading.Event()

    def __enter__(self) -> Peak:
        self.before = self.bytes = held_bytes(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._done.wait(EVERY):
            self.bytes = max(self.bytes, process.memory_info().rss)


def _limits() -> list[int]:
    """Return what containers allow, if they do."""
    texts = [path.read_text().strip() for path in LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]
