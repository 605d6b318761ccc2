"""Which data these are: a hash of what their files hold; torch-free."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants

from pruning.data.folder import IMAGE_SUFFIXES, METADATA
from pruning.data.listing import list_files, suffix_of
from pruning.data.table_files import is_table

READ_WHOLE = 4_000_000_000
"""Bytes up to which every file is read."""

DRAWN = 256
"""Files of larger data that are read."""

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))

SAVED = ("state.json", "dataset_dict.json", "dataset_info.json")
"""What ``save_to_disk`` of `datasets` writes beside its tables."""

Cache = dict[str, dict[str, Any]]
"""Name -> ``bytes``, ``mtime_ns`` and ``sha256`` of a file that was read."""


def data_fingerprint(source: str, known: Mapping[str, Any] | None = None) -> tuple[str, Cache, str]:
    """Return what identifies the data, wherever they lie.

    Local files are known by their names within the source and their contents; above 4 GB by names, sizes, times of
    change and the contents of 256 of them, drawn evenly. A data set on the hub is known by its name, and its commit
    where a copy is here.

    Args:
        source: As for `pruning.data.open_images`.
        known: The cache that was returned before; files of the same size and time are not read again.

    Returns:
        The hash, the new cache, and in words what it rests on.

    Raises:
        PruningError: If a folder cannot be read.
        OSError: If a file cannot be read.
    """
    path = Path(source).expanduser()
    if not path.exists():
        commit = _commit(source)
        words = f"known by its name and commit {commit}" if commit else "known by its name"
        return _hash([source, commit]), {}, words
    root, names = (path.parent, [path.name]) if path.is_file() else (path, data_files(path))
    states = {name: (root / name).stat() for name in names}
    total = sum(state.st_size for state in states.values())
    whole = total <= READ_WHOLE
    read = names if whole else _evenly(names, DRAWN)
    cache = dict(_read(root, {name: states[name] for name in read}, known or {}))
    what: list[Any] = [[name, entry["sha256"]] for name, entry in cache.items()]
    if not whole:
        what.append([[name, state.st_size, state.st_mtime_ns] for name, state in states.items()])
    how = "their contents" if whole else f"names, sizes, times and {len(read)} contents"
    return _hash(what), cache, f"{len(names):,} file{'s' * (len(names) != 1)}, {_size(total)}: known by {how}"


def data_files(root: Path) -> list[str]:
    """Return the files of a folder that are data: tables and what was saved with them, or images and their metadata."""
    files, _ = list_files(root)
    tables = [name for name in files if is_table(name)]
    kept = (*SAVED, *METADATA)
    return [
        name
        for name in files
        if PurePosixPath(name).name.casefold() in kept
        or (is_table(name) if tables else suffix_of(name) in IMAGE_SUFFIXES)
    ]


def _read(
    root: Path, states: Mapping[str, os.stat_result], known: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, state in states.items():
        entry = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
        was = known.get(name)
        was = was if isinstance(was, Mapping) else {}
        same = isinstance(was.get("sha256"), str) and {key: was.get(key) for key in entry} == entry
        yield name, {**entry, "sha256": was["sha256"] if same else _sha256(root / name)}


def _evenly(names: Sequence[str], count: int) -> list[str]:
    """Return `count` names at equal distances, or all where there are fewer."""
    if len(names) <= count:
        return list(names)
    return [names[place * len(names) // count] for place in range(count)]


def _commit(source: str) -> str | None:
    """Return the commit of a hub data set that was fetched before, or None."""
    name = source.replace("/", "--")
    try:
        return (
            (Path(constants.HF_HUB_CACHE) / f"datasets--{name}" / "refs" / "main").read_text("utf-8").strip()
        )
    except OSError:
        return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _size(count: int) -> str:
    unit, name = next((size, name) for size, name in UNITS if count >= size or size == 1)
    return f"{count / unit:.3g} {name}"
