"""Captions and labels beside images: the rows of ``metadata.jsonl``, ``.csv`` or ``.parquet``."""

from __future__ import annotations

import posixpath
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, json, parquet

from pruning.data.folder import ImageFolder
from pruning.data.listing import suffix_of
from pruning.data.names import named
from pruning.errors import PruningError

FILE_NAME, IMAGE = "file_name", "image"


def read_rows(folder: ImageFolder, split: str) -> pa.Table:
    """Return the rows of the metadata files of a split, with the images' paths in the column ``image``.

    A row is a sample: an image in two rows counts twice, one in no row is left out.

    Raises:
        PruningError: If a file cannot be read, has no column ``file_name``, or names a file that is not there; if two
            files name the same image or have other columns; if no row belongs to the split.
    """
    files = folder.described[split]
    where, tables = f"data {str(folder.root)!r}: {named(files)}", [_read(folder, file) for file in files]
    seen = [path for table in tables for path in set(table[IMAGE].to_pylist())]
    if len(seen) > len(set(seen)):
        raise PruningError(f"{where} name the same images; keep one of the files")
    try:
        rows = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise PruningError(f"{where} have other columns: {error}; give them the same") from error
    mine = set(folder.splits[split])
    rows = rows.filter(pa.array([path in mine for path in rows[IMAGE].to_pylist()], pa.bool_()))
    if not len(rows):
        raise PruningError(
            f"{where} names no image of the split {split!r}; add rows, or put the file into the folder of the split "
            "that it is about"
        )
    return rows


def _read(folder: ImageFolder, file: str) -> pa.Table:
    """Return one metadata file, its ``file_name`` as paths relative to the root."""
    where = f"data {str(folder.root / file)!r}"
    try:
        table = _parse(folder.root / file)
    except (pa.ArrowException, OSError) as error:
        raise PruningError(f"{where} cannot be read: {error}") from error
    if FILE_NAME not in table.column_names or IMAGE in table.column_names:
        raise PruningError(
            f"{where}: its rows must name an image in {FILE_NAME!r}, relative to this file, and have no column "
            f"{IMAGE!r}; its columns: {', '.join(table.column_names)}"
        )
    above = posixpath.dirname(file)
    paths = [posixpath.normpath(posixpath.join(above, str(name))) for name in table[FILE_NAME].to_pylist()]
    known = set[str]().union(*folder.splits.values())
    if lost := [path for path in paths if path not in known]:
        raise PruningError(
            f"{where} names {named(lost)}, and there is no such image in {folder.root}; mend or drop the rows"
        )
    return table.drop_columns([FILE_NAME]).add_column(0, IMAGE, pa.array(paths, pa.string()))


def _parse(path: Path) -> pa.Table:
    """Return the table in a file, by its ending."""
    if suffix_of(path.name) == ".csv":
        return csv.read_csv(path)
    if suffix_of(path.name) == ".parquet":
        return parquet.read_table(path)
    whole = json.ReadOptions(block_size=max(path.stat().st_size, 1) + 1)  # a row must not straddle two blocks
    return json.read_json(path, read_options=whole)
