"""Which split each table file is: one rule for names of files and folders; torch-free."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pruning.data.folder import IMAGE_SUFFIXES
from pruning.data.listing import Listing, in_words, kinds_of, suffix_of
from pruning.data.names import SPLITS, named, split_named, splits_in
from pruning.errors import PruningError

FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}

_SHARD = re.compile(r"(.*?)(\d{1,5})-of-(\d{1,5})(?!\d)")


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


def is_table(file: str) -> bool:
    """Tell whether a file of a folder is a table of samples, not of metadata beside images."""
    return suffix_of(file) in FILE_FORMATS and PurePosixPath(file).stem.casefold() != "metadata"


def read_table_file(path: Path) -> TableFiles:
    """Return a single file as the split that its name says, else as ``train``.

    Raises:
        PruningError: If it is of another format, or its name says several splits.
    """
    if suffix_of(path.name) not in FILE_FORMATS:
        raise PruningError(f"data {str(path)!r}: a single file must end in {' or '.join(FILE_FORMATS)}")
    return _by_split(path.parent, [path.name], Counter())


def read_table_folder(root: Path, listing: Listing) -> TableFiles:
    """Return the splits of the folder `root` of parquet or arrow files, whose files are `listing`.

    The name of a file says its split, else the nearest folder that is named as one; where no file says any, all are
    ``train``.

    Raises:
        PruningError: If formats, folders, or tables and images are mixed, some files say a split and others none,
            or one of several numbered files is missing.
    """
    files, skipped = listing
    tables = [file for file in files if is_table(file)]
    if images := [file for file in files if suffix_of(file) in IMAGE_SUFFIXES]:
        raise PruningError(
            f"data {str(root)!r} holds images as well as tables ({named(images)}; {named(tables)}); move the one or "
            "the other out"
        )
    _check_shards(tables, f"data {str(root)!r}")
    return _by_split(root, tables, skipped + kinds_of([file for file in files if not is_table(file)]))


def _check_shards(tables: list[str], where: str) -> None:
    """Raise PruningError unless the files ``train-00000-of-00003.parquet``, … are one whole set, from 0 or from 1."""
    sets = defaultdict[str, set[tuple[int, ...]]](set)
    for file in tables:
        if found := _SHARD.match(file):
            sets[found[1]].add((int(found[3]), int(found[2])))
    for name, parts in sets.items():
        (totals, numbers), last = map(set, zip(*parts, strict=True)), max(parts)[0]
        first = int(last in numbers)
        lacking = [str(number) for number in range(first, last + first) if number not in numbers]
        if lacking or len(totals) > 1:
            raise PruningError(
                f"{where}: the files {name + '*'!r} are not one whole set of {' or '.join(map(str, sorted(totals)))}; "
                f"missing: {named(lacking) or 'none'}; complete it, and take other sets out"
            )


def _by_split(root: Path, tables: list[str], left_out: Counter[str]) -> TableFiles:
    where = f"data {str(root)!r}"
    kinds = {"/".join([*_plain_folders(file), f"*{suffix_of(file)}"]) for file in tables}
    if len(kinds) > 1:
        raise PruningError(
            f"{where} holds tables in several folders or formats ({named(sorted(kinds))}); give a folder with one of "
            "them as data.source"
        )
    said = {file: _split_of(file, where) for file in tables}
    silent = [file for file, split in said.items() if split is None]
    if silent and len(silent) < len(said):
        raise PruningError(
            f"{where}: the names of some files say a split, and {named(silent)} say none; name every file after its "
            "split, as in train-00000-of-00002.parquet, or take it out"
        )
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        if found := [root / file for file in tables if (said[file] or "train") == split]:
            splits[split] = found
    sizes = ", ".join(f"{split} ({len(paths):,})" for split, paths in splits.items())
    kind = FILE_FORMATS[suffix_of(tables[0])]
    rest = f"; left out: {in_words(left_out)}" if left_out else ""
    return TableFiles(kind, splits, f"{len(tables):,} {kind} files; splits: {sizes}{rest}")


def _plain_folders(file: str) -> list[str]:
    """Return the folders of a path that are not named as splits."""
    return [part for part in PurePosixPath(file).parts[:-1] if split_named(part) is None]


def _split_of(file: str, where: str) -> str | None:
    """Return the split that a path says: by its file (``cats_val.parquet``), or the nearest folder named as one."""
    path = PurePosixPath(file)
    by_folder = [split for part in path.parts[:-1] if (split := split_named(part))]
    said = splits_in(path.stem).union(by_folder[-1:])
    if len(said) > 1:
        raise PruningError(
            f"{where}: the name {file!r} says several splits ({', '.join(sorted(said))}); rename the file"
        )
    return next(iter(said), None)
