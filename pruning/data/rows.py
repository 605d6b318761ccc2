"""Sources -> rows: the images of a split with their labels and captions, through `datasets`."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import config

from pruning.data.folder import ImageFolder, read_image_folder
from pruning.data.listing import list_files
from pruning.data.metadata import IMAGE, read_rows
from pruning.data.table_files import FILE_FORMATS, TableFiles, is_table, read_table_file, read_table_folder
from pruning.errors import PruningError
from pruning.files import expanded
from pruning.models.hub import ask_hub
from pruning.models.sources import near_name


@dataclass(frozen=True)
class Rows:
    """One split of a source.

    Attributes:
        table: A row per sample; images are encoded or paths.
        found: What the source holds and what was left out, in words; empty where `datasets` alone knows.
        class_names: Class -> name where folders are the classes, else None.
    """

    table: datasets.Dataset
    found: str = ""
    class_names: Mapping[int, str] | None = None


def load_rows(source: str, split: str) -> Rows:
    """Return one split of a source.

    Args:
        source: A parquet or arrow file, a folder (of such files, of images, or from ``save_to_disk``), or a hub id.
        split: The split to return.

    Raises:
        PruningError: If there is no such source or split, it can be read in several ways, or it cannot be read.
    """
    path = expanded(source)
    if path.is_file():
        return _table_files(source, split, read_table_file(path))
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = _read(source, lambda: datasets.load_from_disk(str(path)))
        return Rows(_chosen(source, split, saved if isinstance(saved, dict) else {"train": saved}))
    if path.is_dir():
        listing = list_files(path)
        if any(map(is_table, listing[0])):
            return _table_files(source, split, read_table_folder(path, listing))
        return _image_folder(source, split, read_image_folder(path, listing))
    # A hub id is ``name`` or ``owner/name``.
    if source.startswith(("/", ".", "~")) or source.count("/") > 1 or path.suffix in FILE_FORMATS:
        raise PruningError(
            f"data {source!r}: no such file or folder (looked at {path.absolute()}){near_name(path)}"
        )
    if not (Path(config.HF_DATASETS_CACHE) / source.replace("/", "___")).is_dir():
        ask_hub(f"data {source!r} is no file or folder here{near_name(path)}", source, kind="dataset")
    return Rows(_chosen(source, split, _read(source, lambda: datasets.load_dataset(source))))


def _image_folder(source: str, split: str, folder: ImageFolder) -> Rows:
    root = folder.root
    layout = f", or put the images under {root}/train/<class>/ and those held out under {root}/test/<class>/"
    images = _chosen(source, split, folder.splits, layout)
    found, names, columns = folder.in_words(), None, dict[str, Any]()
    if split in folder.described:
        columns = read_rows(folder, split).to_pydict()
        unnamed = len({*images}.difference(columns[IMAGE]))
        images = columns[IMAGE]
        found += f"; {len(images):,} rows of {split}, {unnamed:,} of its images in none and left out"
    elif split in folder.labelled:
        columns["label"] = [folder.class_of(image) for image in images]
        names = {number: name for name, number in folder.classes.items()}
    columns[IMAGE] = [str(root / image) for image in images]
    return Rows(datasets.Dataset.from_dict(columns).cast_column(IMAGE, datasets.Image()), found, names)


def _table_files(source: str, split: str, files: TableFiles) -> Rows:
    layout = ", or give a folder that holds a train.parquet and a test.parquet"
    paths = [glob.escape(str(path)) for path in _chosen(source, split, files.splits, layout)]

    def load() -> Any:
        return datasets.load_dataset(files.format, data_files={split: paths}, split=split)

    return Rows(_read(source, load), files.found)


def _read(source: str, load: Callable[[], Any]) -> Any:
    """Return what `load` does, without bars in a log (on a terminal they stay), its errors in our words."""
    with ExitStack() as bars:
        if not sys.stderr.isatty() and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            bars.callback(datasets.enable_progress_bars)
        try:
            return load()
        except Exception as error:  # `datasets` has no common base class for what goes wrong while it reads
            # What is wrong often stands in the cause alone.
            said = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
            if "corresponds to no data" in said or "BatchSize must be greater" in said:
                raise PruningError(
                    f"data {source!r}: the split asked for, or a file of it, has no rows; add rows or remove it"
                ) from error
            raise PruningError(f"data {source!r} cannot be read: {type(error).__name__}: {said}") from error


def _chosen(source: str, split: str, splits: Mapping[str, Any], layout: str = "") -> Any:
    """Return one of `splits`, or say which there are, and by `layout` how the data could be laid out to have two."""
    if split not in splits:
        raise PruningError(
            f"data {source!r} has no split {split!r}; its splits: {', '.join(map(str, splits))}. Name one of them in "
            f"data.split or data.eval_split{layout}"
        )
    return splits[split]
