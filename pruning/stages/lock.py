"""One process at a time in a run directory, and a clear word on who that is."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from pruning.errors import PruningError

LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Holder:
    """The process that holds a run directory.

    Attributes:
        pid: Process id.
        host: Host name.
        since: When it took the lock, local time, ISO 8601.
        started: When the process started, seconds since the epoch: a process id is used again, this is not.
    """

    pid: int
    host: str
    since: str
    started: float

    @classmethod
    def me(cls) -> Holder:
        """Return this process."""
        now = datetime.now().isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), now, psutil.Process().create_time())

    def is_dead(self) -> bool:
        """Tell whether the process is known to be gone; one on another host never is."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 2.0
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the lock of a process that died is taken over.

    Raises:
        PruningError: If another process holds it, naming process, host and time.
    """
    path = folder / LOCK_FILE
    mine = Holder.me()
    for _ in range(3):
        if _create(path, mine):
            break
        holder = _read(path)
        if holder is not None and not holder.is_dead():
            raise PruningError(
                f"{folder} is in use by process {holder.pid} on {holder.host} since {holder.since}; wait for it, "
                f"choose another name=…, or delete {path} if that process is gone"
            )
        _remove(path, holder)
    else:
        raise PruningError(f"{folder}: another process took {path} at the same moment; try again")
    try:
        yield
    finally:
        _remove(path, mine)


def _create(path: Path, holder: Holder) -> bool:
    """Create the lock file; False if there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(holder), file)
    return True


def _read(path: Path) -> Holder | None:
    """Return who holds the lock, or None if it is gone or was never written whole."""
    for _ in range(10):
        try:
            return Holder(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.1)  # Its owner may be between creating and writing it.
    return None


def _remove(path: Path, holder: Holder | None) -> None:
    """Remove the lock if it is still `holder`'s: moved aside first, so that two takers cannot both win."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != holder:
        aside.rename(path)
        return
    aside.unlink(missing_ok=True)
