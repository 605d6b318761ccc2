"""Hashes of files that are asked for again and again, remembered beside the results."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pruning.files import read_json, write_json
from pruning.store.artefacts import file_hash, is_entry


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
        name, status = str(file.absolute()), file.stat()
        entry: Mapping[str, Any] = self._known.get(name) or {}
        now = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        if not is_entry(entry) or {key: entry[key] for key in now} != now:
            entry = {**now, "sha256": file_hash(file)}
            self._known[name] = dict(entry)
            self._changed = True
        return entry["sha256"]

    def save(self) -> None:
        """Write down what is known, if anything is new."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)
            self._changed = False
