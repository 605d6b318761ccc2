"""Hashes of files: what a folder holds, whether it still does, and which of them need not be read again.

Files of up to 64 MB are read to see whether they are as they were (once a process); a larger one only if its size or
time is not as recorded, so a change that keeps both goes unseen there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pruning.files import read_json, write_json

LARGE = 64 * 2**20
"""Files above this many bytes are taken as unchanged if their size and time are."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(what: Any) -> str:
    """Return the SHA-256 of JSON types."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path) -> dict[str, dict[str, int]]:
    """Return size and time of all files under a folder: equal for two folders of links or copies of the same files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): _state(path.stat()) for path in paths}


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(state["bytes"] for state in files_of(folder).values())


def is_as_described(path: Path, entry: Mapping[str, Any]) -> bool:
    """Tell whether a file is still what a manifest says of it: size, time and hash."""
    state = _state(path.stat())
    if state["bytes"] > LARGE and state.items() <= entry.items():
        return True
    return _hash_once(path.absolute(), **state) == entry["sha256"]


def _state(status: os.stat_result) -> dict[str, int]:
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


@lru_cache(maxsize=4096)
def _hash_once(path: Path, bytes: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file that is asked for often; size and time tell its versions apart."""
    return file_hash(path)


class Hashes:
    """SHA-256 of files by path; a file of the same size and time is not read again.

    Args:
        path: A JSON file in which they are remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        self._changed = False
        with suppress(ValueError):  # a broken one only costs time
            self._known = read_json(path) or {}

    def of(self, file: Path) -> str:
        """Return the SHA-256 of a file."""
        # The time of the last change of any kind cannot be set, as `cp -p` and unpacking set that of the contents.
        name, status = str(file.absolute()), file.stat()
        state = {**_state(status), "ctime_ns": status.st_ctime_ns}
        entry = self._known.get(name)
        if not isinstance(entry, Mapping) or "sha256" not in entry or not state.items() <= entry.items():
            entry = self._known[name] = {**state, "sha256": file_hash(file)}
            self._changed = True
        return entry["sha256"]

    def save(self) -> None:
        """Write down what is known, if anything is new."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)
            self._changed = False
