"""One process at a time: file locks that say who holds them; the lock of a process that died is taken over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import SoftFileLock, Timeout

from pruning.errors import PruningError

POLL_SECONDS = 0.5


@contextmanager
def locked(path: Path, what: str, advice: str) -> Iterator[None]:
    """Hold the lock file `path` for this process.

    Raises:
        PruningError: If another process holds it: `what`, by whom and since when, and `advice`.
    """
    try:
        lock = SoftFileLock(path).acquire(timeout=0)
    except Timeout as error:
        raise PruningError(f"{what} is in use by {holder(path)}; {advice}") from error
    with lock:
        yield


@contextmanager
def waited_for(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; `waiting` is told once who that is."""
    lock = SoftFileLock(path)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        waiting(holder(path))
        held = lock.acquire(poll_interval=POLL_SECONDS)
    with held:
        yield


def holder(path: Path) -> str:
    """Say which process holds a lock file, on which host and since when, as far as that can be read."""
    words, since = [], ""
    with suppress(OSError):
        words = path.read_text(encoding="utf-8", errors="replace").split()
        since = datetime.fromtimestamp(path.stat().st_mtime).isoformat(timespec="seconds")
    process = f"process {words[0]}" if words else "another process"
    host = f" on {words[1]}" if len(words) > 1 else ""
    return f"{process}{host}{since and f' since {since}'}"
