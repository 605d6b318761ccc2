"""Writing so that what carries a final name is whole, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pruning.types import PruningError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file would be larger than this system or shell allows (ulimit -f)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
}


@contextmanager
def write_errors(what: str, folder: Path, consequence: str) -> Iterator[None]:
    """Turn errors of the file system into a PruningError.

    Args:
        what: What is being written, e.g. ``"recovery checkpoint"``.
        folder: Where.
        consequence: What is still whole.

    Raises:
        PruningError: For any OSError, or safetensors' wrapping of one.
    """
    try:
        yield
    except SafetensorError as error:
        code = next((c for c in _ADVICE if f"(os error {c})" in str(error)), None)
        if code is None:
            raise
        raise PruningError(
            f"cannot write {what} in {folder}: {_ADVICE[code]} ({error}). {consequence}"
        ) from error
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "see the system's message")
        raise PruningError(f"cannot write {what} in {folder}: {advice} ({error}). {consequence}") from error


def check_writable(what: str, folder: Path, needed_bytes: int) -> None:
    """Create `folder` and check, before expensive work, that it can be written and has room.

    Raises:
        PruningError: Naming the folder and what is missing.
    """
    with write_errors(what, folder, "Nothing has been changed"):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise PruningError(
            f"cannot write {what} in {folder}: about {_size(needed_bytes)} are needed and {_size(free)} are free; "
            "free some space or choose another folder. Nothing has been changed"
        )


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder` to the disk, so that a rename cannot outrun the contents."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
