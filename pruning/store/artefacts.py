"""Are the files of a result still as they were written?

A manifest records size, time and SHA-256 of every file. Files of up to 64 MB are read and hashed to compare (once a
process); a larger one only if its size or time is not as recorded, so a change that keeps both goes unseen there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

LARGE = 64 * 2**20
"""Files above this many bytes are taken as unchanged if their size and time are."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def describe_files(folder: Path, besides: Collection[str], scratch: str) -> dict[str, dict[str, Any]]:
    """Return size, time and hash of all files under `folder` but `besides` and those in the folder `scratch`."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        if name not in besides and not name.startswith(f"{scratch}/"):
            status = (folder / name).stat()
            sha = file_hash(folder / name)
            found[name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha}
    return found


def is_entry(entry: Any) -> bool:
    """Tell whether this is what `describe_files` says of a file."""
    kinds = {"bytes": int, "mtime_ns": int, "sha256": str}
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())


def hash_now(path: Path, entry: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file; that of its `entry` for a large one whose size and time are as recorded."""
    status = path.stat()
    if status.st_size > LARGE and (entry["bytes"], entry["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
        return entry["sha256"]
    return _hash_once(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_once(path: Path, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of a file that is asked for often; `size` and `mtime_ns` tell its versions apart."""
    return file_hash(path)


def outputs(artefacts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one hash over the names and contents of a stage's files."""
    hashes = {name: entry["sha256"] for name, entry in sorted(artefacts.items())}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
