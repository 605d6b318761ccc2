"""The files under a folder, whatever their names and links; torch-free."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruning.errors import PruningError

HIDDEN, BROKEN, SPECIAL = "hidden", "broken links", "no regular files"
EMPTY, LOOP = "empty folders", "links to a folder above"
"""What is left out whatever a folder is read for."""


def natural_key(name: str) -> tuple[Any, ...]:
    """Return what sorts names as people count: ``class2`` before ``class10``, capitals beside small letters."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return (*(int(part) if place % 2 else part for place, part in enumerate(parts)), name)


Listing = tuple[list[str], Counter[str]]
"""Files relative to their folder, and a count of what was left out."""


def list_files(folder: Path) -> Listing:
    """Return the files under `folder`, in natural order, and a count of what was left out.

    Links to files and to folders are followed; one to a folder above itself is not, nor are names that begin with a
    dot (as those in the ``__MACOSX`` folder of an archive).

    Returns:
        Paths relative to `folder`, with ``/``, a folder's own files before those of its folders.

    Raises:
        PruningError: If a folder cannot be read.
    """
    left_out: Counter[str] = Counter()
    return list(_walk(folder, "", (), left_out)), +left_out


def _walk(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...], left_out: Counter[str]
) -> Iterator[str]:
    try:
        status, entries = folder.stat(), list(os.scandir(folder))
    except OSError as error:
        raise PruningError(
            f"data folder {str(folder)!r} cannot be read: {error.strerror}; give yourself the right to read it, or "
            "take it out"
        ) from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        left_out[LOOP] += 1
        return
    left_out[EMPTY] += not entries
    folders = []
    for entry in sorted(entries, key=lambda entry: natural_key(entry.name)):
        if entry.name.startswith("."):
            left_out[HIDDEN] += 1
        elif entry.is_dir():
            folders.append(entry.name)
        elif entry.is_file():
            yield prefix + entry.name
        else:
            left_out[BROKEN if entry.is_symlink() else SPECIAL] += 1
    for name in folders:
        yield from _walk(folder / name, f"{prefix}{name}/", (*above, here), left_out)


def suffix_of(file: str) -> str:
    """Return the ending of a name in small letters, with its dot; empty if there is none."""
    return os.path.splitext(file)[1].lower()


def kinds_of(files: Sequence[str]) -> Counter[str]:
    """Return how many files have which ending."""
    return Counter(suffix_of(file) or "without an ending" for file in files)


def in_words(counts: Mapping[str, int]) -> str:
    """Return counts for a message, such as ``.txt: 3, broken links: 1``, the most frequent first."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{what}: {count:,}" for what, count in by_count)


def named(names: Sequence[str], most: int = 4) -> str:
    """Return a few names for a message, and how many more there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
