"""Which split each table file is: one rule for names of files and folders; torch-free."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pruning.data.folder import IMAGE_SUFFIXES
from pruning.data.listing import Listing, in_words, kinds_of, list_files, named, suffix_of
from pruning.data.splits import SPLITS, split_named, splits_in
from pruning.errors import PruningError

FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True)
class TableFiles:
    """What a parquet or arrow file, or a folder of them, holds.

    Attributes:
        format: ``parquet`` or ``arrow``.
        splits: Split -> its files, in natural order.
        found: What was found and left out, for a log.
    """

    format: str
    splits: dict[str, list[Path]]
    found: str


def split_of_file(name: str, where: str) -> str | None:
    """Return the split that a file's name says (``test-00000-of-00001.parquet``, ``cats_val.parquet``), or None.

    Raises:
        PruningError: If it says several.
    """
    said = splits_in(os.path.splitext(name)[0])
    if len(said) > 1:
        raise PruningError(
            f"{where}: the name {name!r} says several splits ({', '.join(sorted(said))}); rename the file"
        )
    return next(iter(said), None)


def read_table_file(path: Path) -> TableFiles:
    """Return a single file as the split that its name says, else as ``train``.

    Raises:
        PruningError: If it is of another format, or its name says several splits.
    """
    where = f"data {str(path)!r}"
    kind = FILE_FORMATS.get(suffix_of(path.name))
    if kind is None:
        raise PruningError(f"{where}: a single file must end in {' or '.join(FILE_FORMATS)}")
    split = split_of_file(path.name, where) or "train"
    return TableFiles(kind, {split: [path]}, f"one {kind} file; split: {split}")


def is_table(file: str) -> bool:
    """Tell whether a file of a folder is a table of samples, not of metadata beside images."""
    return suffix_of(file) in FILE_FORMATS and PurePosixPath(file).stem.casefold() != "metadata"


def read_table_folder(root: Path, listing: Listing | None = None) -> TableFiles:
    """Return the splits of a folder of parquet or arrow files.

    The name of a file says its split, else the nearest folder that is named as one; where no file says any, all are
    ``train``.

    Args:
        root: The folder.
        listing: From `list_files`, if it has been listed already.

    Raises:
        PruningError: If formats, folders, or tables and images are mixed, or some files say a split and others none.
    """
    where = f"data {str(root)!r}"
    files, skipped = listing or list_files(root)
    tables = [file for file in files if is_table(file)]
    left_out = skipped + kinds_of([file for file in files if not is_table(file)])
    if images := [file for file in files if suffix_of(file) in IMAGE_SUFFIXES]:
        raise PruningError(
            f"{where} holds images as well as tables ({named(images)}; {named(tables)}); move the one or the other out"
        )
    formats = sorted({FILE_FORMATS[suffix_of(file)] for file in tables})
    folders = {tuple(p for p in PurePosixPath(f).parts[:-1] if split_named(p) is None) for f in tables}
    if len(formats) > 1 or len(folders) > 1:
        what = f"both {' and '.join(formats)} files" if len(formats) > 1 else "tables in several folders"
        inner = sorted("/".join(folder) or "." for folder in folders)
        raise PruningError(f"{where} holds {what} ({named(inner)}); give one of them as data.source")
    said = {file: _split_of_path(file, where) for file in tables}
    silent = [file for file, split in said.items() if split is None]
    if silent and len(silent) < len(said):
        raise PruningError(
            f"{where}: the names of some files say a split, and {named(silent)} say none; name every file after its "
            "split, as in train-00000-of-00002.parquet, or take it out"
        )
    by_split: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file, split in said.items():
        by_split[split or "train"].append(root / file)
    splits = {split: paths for split, paths in by_split.items() if paths}
    sizes = ", ".join(f"{split} ({len(paths):,})" for split, paths in splits.items())
    found = f"{len(tables):,} {formats[0]} files; splits: {sizes}"
    return TableFiles(formats[0], splits, found + (f"; left out: {in_words(left_out)}" if left_out else ""))


def _split_of_path(file: str, where: str) -> str | None:
    """Return the split that a path says: by its file, else by the nearest folder named as one."""
    path = PurePosixPath(file)
    by_file = split_of_file(path.name, where)
    by_folder = next((split for part in reversed(path.parts[:-1]) if (split := split_named(part))), None)
    if by_file and by_folder and by_file != by_folder:
        raise PruningError(
            f"{where}: {file!r} is of the split {by_file} by its name and {by_folder} by its folder; rename one"
        )
    return by_file or by_folder
