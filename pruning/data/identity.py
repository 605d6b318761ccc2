"""Which data these are: a hash of what their files hold; torch-free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants

from pruning.data.folder import IMAGE_SUFFIXES, METADATA
from pruning.data.listing import list_files, suffix_of
from pruning.data.prompts import place_of, text_files
from pruning.data.table_files import is_table
from pruning.files import size
from pruning.store import hash_of

READ_WHOLE = 4_000_000_000
"""Bytes up to which every file is read."""

DRAWN = 256
"""Files of larger data that are read."""

SAVED = ("state.json", "dataset_dict.json", "dataset_info.json")
"""What ``save_to_disk`` of `datasets` writes beside its tables."""


def data_fingerprint(source: str, hash_file: Callable[[Path], str]) -> tuple[str, str]:
    """Return a hash of the data, wherever they lie, and in words what it rests on.

    Local files are known by their names within the source and their contents; above 4 GB by names, sizes, times of
    change and the contents of 256 of them, drawn evenly. A data set on the hub is known by its name, and its commit
    where a copy is here.

    Args:
        source: As for `pruning.data.open_images`.
        hash_file: Returns the SHA-256 of a file.

    Raises:
        PruningError: If a folder cannot be read.
        OSError: If a file cannot be read.
    """
    path = place_of(source)
    if not path.exists():
        commit = _commit(source)
        return hash_of([source, commit]), f"known by its name{f' and commit {commit}' if commit else ''}"
    root, names = (path.parent, [path.name]) if path.is_file() else (path, data_files(path))
    states = {name: (root / name).stat() for name in names}
    total = sum(state.st_size for state in states.values())
    read, whole = names, total <= READ_WHOLE
    if not whole and len(names) > DRAWN:
        read = [names[place * len(names) // DRAWN] for place in range(DRAWN)]
    what: list[Any] = [[name, hash_file(root / name)] for name in read]
    if not whole:
        what.append([[name, state.st_size, state.st_mtime_ns] for name, state in states.items()])
    how = (
        "their contents (a change is noticed)"
        if whole
        else f"names, sizes, times and the contents of {len(read)}"
    )
    count = f"{len(names):,} file{'s' * (len(names) != 1)}"
    return hash_of(what), f"{count}, {size(total)}, known by {how}"


def data_files(root: Path) -> list[str]:
    """Return the files of a folder that are data: prompts, tables with what goes with them, or images and metadata."""
    if texts := text_files(root):
        return [path.name for path in texts.values()]
    files, _ = list_files(root)
    tables = any(map(is_table, files))
    return [
        name
        for name in files
        if PurePosixPath(name).name.casefold() in (*SAVED, *METADATA)
        or (is_table(name) if tables else suffix_of(name) in IMAGE_SUFFIXES)
    ]


def _commit(source: str) -> str | None:
    """Return the commit of a hub data set that was fetched before, or None."""
    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}"
    try:
        return (folder / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None
