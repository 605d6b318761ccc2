"""One process at a time: file locks that say who holds them; the lock of a process that died is taken over."""

from __future__ import annotations

import time
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
    lock = SoftFileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise PruningError(f"{what} is in use by {holder(path)}; {advice}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def waited_for(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; `waiting` is told once who that is."""
    lock, told = SoftFileLock(path, timeout=0), False
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            if not told:
                waiting(holder(path))
                told = True
            time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Tell whether a living process holds the lock file `path`."""
    if not path.exists():
        return False
    lock = SoftFileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def holder(path: Path) -> str:
    """Say which process holds a lock file, on which host and since when, as far as that can be read."""
    words, since = [], ""
    with suppress(OSError):
        words = path.read_text(encoding="utf-8", errors="replace").split()
        since = datetime.fromtimestamp(path.stat().st_mtime).isoformat(timespec="seconds")
    process = f"process {words[0]}" if words else "another process"
    host = f" on {words[1]}" if len(words) > 1 else ""
    return f"{process}{host}{since and f' since {since}'}"
