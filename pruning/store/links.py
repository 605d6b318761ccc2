"""The same files in two places: hard links where the file system has them, else copies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pruning.files import written_whole


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`, replacing what is there as a whole."""
    with written_whole(target) as temporary:
        temporary.mkdir()
        for path in sorted(source.rglob("*")):  # a folder comes before what is in it
            place = temporary / path.relative_to(source)
            if path.is_dir():
                place.mkdir()
                continue
            try:
                os.link(path, place)
            except OSError:  # another device, or a file system without links
                shutil.copy2(path, place)


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all files under a folder: equal for two folders of links or copies of the same files."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = path.stat()
            found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(size for size, _ in files_of(folder).values())
