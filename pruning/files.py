"""Writing so that what carries a final name is whole, with errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError

from pruning.errors import PruningError

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


LONGEST = 180
"""Bytes of a file's name: systems allow 255, and a temporary name beside it is longer."""


MACHINE_PATH = re.compile(
    r"""file:/+[^\s"'`]+"""
    r"""|\b[A-Za-z]:\\[^\s"'`|]+"""
    r"""|(?<![\w/.<~\\])(?:~\w*)?/[\w@+][\w.@+\-]*(?:/[\w.@+\-]+)*/?"""
)
"""A path from the root, from a home folder or from a drive within a text; no part of an address on the web."""


def machine_paths(text: str) -> list[str]:
    """Return the paths of a text that mean something on one machine alone, each once."""
    return list(dict.fromkeys(MACHINE_PATH.findall(text)))


def without_folders(value: Any) -> Any:
    """Return JSON types in whose texts a path of this machine is the name of its file or folder alone."""
    if isinstance(value, Mapping):
        return {key: without_folders(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if (found := MACHINE_PATH.match(value)) and not re.search(r"[\n:]", value[found.end() :]):
        return _last(value)  # one path, perhaps with spaces in it
    return MACHINE_PATH.sub(lambda found: _last(found[0]), value)


def foreign_to_tensors(folder: Path) -> list[str]:
    """Return the names of what lies in a folder, or in its place, beside tensor files and such as are being written."""
    entries = folder.iterdir() if folder.is_dir() else [folder]
    return sorted(p.name for p in entries if p.is_dir() or p.suffix not in (".safetensors", ".tmp"))


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def file_name(name: str) -> str:
    """Return a name for the file or folder of something called `name`, another for every other name."""
    quoted = quote(name, safe="")
    if len(quoted) <= LONGEST:
        return quoted
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{quoted[: LONGEST - len(digest) - 1]}-{digest}"


def expanded(path: str | Path) -> Path:
    """Return a path with home folders in the place of ``~`` and ``~name``; a home that is none is a PruningError."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PruningError(f"{str(path)!r}: there is no such home folder ({error})") from error


@contextmanager
def write_errors(what: str, folder: Path, consequence: str) -> Iterator[None]:
    """Turn what a disk refuses into a PruningError; other errors pass.

    Args:
        what: What is being written, e.g. ``"recovery checkpoint"``.
        folder: Where.
        consequence: What is still whole.

    Raises:
        PruningError: For an OSError of those above, or safetensors' wrapping of one.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        code = next((c for c in _ADVICE if c == number or f"(os error {c})" in str(error)), None)
        if code is None:
            raise
        raise PruningError(
            f"cannot write {what} in {folder}: {_ADVICE[code]} ({error}). {consequence}"
        ) from error


def check_writable(what: str, folder: Path, needed_bytes: int) -> None:
    """Create `folder`; a PruningError says, before expensive work, if it cannot be written or has no room."""
    with write_errors(what, folder, "Nothing has been changed"):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise PruningError(
            f"cannot write {what} in {folder}: about {size(needed_bytes)} are needed and {size(free)} are free; "
            "free some space or choose another folder. Nothing has been changed"
        )


@contextmanager
def written_whole(path: Path, *, flush: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`; the file or folder written there takes its place if the block ends well.

    Nobody ever sees half of either: a folder that was there is whole until the new one is.

    Args:
        path: The final name.
        flush: Wait until the contents are on the disk, so that a rename cannot outrun them.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        share(temporary)
        if flush:
            _flush(temporary)
        _take_place(temporary, path)
    finally:
        remove(temporary)


def _take_place(temporary: Path, path: Path) -> None:
    """Rename; a folder that is in the way steps aside, and is back if that fails."""
    if not (temporary.is_dir() and path.is_dir()):
        temporary.replace(path)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    remove(aside)
    path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        aside.rename(path)
        raise
    remove(aside)


def remove(path: Path) -> None:
    """Take a file or folder away, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Give files the permissions of any new file: safetensors makes some that nobody else may read."""
    mask = os.umask(0)
    os.umask(mask)
    for file in [path] if path.is_file() else path.rglob("*.safetensors"):
        file.chmod(0o666 & ~mask)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; the file appears whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, advice: str = "delete it") -> dict[str, Any] | None:
    """Return the mapping in a JSON file, or None if there is no such file.

    Raises:
        PruningError: If the file holds something else; it ends in `advice`.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise PruningError(f"{path}: cannot be read as JSON ({error}); {advice}") from error
    if not isinstance(data, dict):
        raise PruningError(f"{path}: expected a mapping, found {json.dumps(data)[:40]}; {advice}")
    return data


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def size(count: float | None) -> str:
    """Return a number of bytes in short: 5.1 MB."""
    return "–" if count is None else short(count, {"GB": 1e9, "MB": 1e6, "kB": 1e3}) or f"{count:.0f} B"


def short(value: float, units: Mapping[str, float]) -> str | None:
    """Return a value in the first of `units` that it fills, with three digits, or None."""
    found = ((unit, one) for unit, one in units.items() if abs(value) >= 0.9995 * one)  # 999.9 is 1e+03
    return next((f"{format(value / one, '#.3g').rstrip('.')} {unit}" for unit, one in found), None)
