"""The files under a folder, whatever their names and links; torch-free."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pruning.data.names import natural_key
from pruning.errors import PruningError

Listing = tuple[list[str], Counter[str]]
"""Files relative to their folder, and a count of what was left out."""


def list_files(folder: Path) -> Listing:
    """Return the files under `folder`, in natural order, and a count of what was left out.

    Links to files and to folders are followed; one to a folder above itself is not, nor are names that begin with a
    dot (as those in the ``__MACOSX`` folder of an archive). A folder's own files come before those of its folders, as
    paths relative to `folder`, with ``/``.

    Raises:
        PruningError: If a folder cannot be read.
    """
    files: list[str] = []
    left_out: Counter[str] = Counter()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        left_out["empty folders"] += not folders and not names
        why = {name: _why_left_out(os.path.join(place, name)) for name in (*folders, *names)}
        left_out.update(reason for reason in why.values() if reason)
        folders[:] = sorted((name for name in folders if why[name] is None), key=natural_key)
        kept = sorted((name for name in names if why[name] is None), key=natural_key)
        here = Path(place).relative_to(folder)
        files += [(here / name).as_posix() for name in kept]
    return files, +left_out


def _refuse(error: OSError) -> None:
    raise PruningError(
        f"data folder {error.filename!r} cannot be read: {error.strerror}; give yourself the right to read it, or take "
        "it out"
    ) from error


def _why_left_out(path: str) -> str | None:
    """Return in words why a file or folder is not used, or None."""
    if os.path.basename(path).startswith("."):
        return "hidden"
    if os.path.isfile(path):
        return None
    if not os.path.isdir(path):
        return "broken links" if os.path.islink(path) else "no regular files"
    above = (os.path.realpath(parent) for parent in Path(path).parents)
    return "links to a folder above" if os.path.islink(path) and os.path.realpath(path) in above else None


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
