"""Tables of images (parquet, arrow, folders, the hub) through `datasets`; pixels are decoded when asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from pyarrow.parquet import read_metadata
from torch import Tensor

from pruning.data.decode import open_image, to_tensor
from pruning.data.images import ImageData, UnreadableRow
from pruning.errors import PruningError

FILE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "class", "fine_label")
CAPTION_NAMES = ("caption", "text", "prompt")
SPLIT_FOLDERS = {
    "train",
    "training",
    "test",
    "testing",
    "eval",
    "evaluation",
    "validation",
    "valid",
    "val",
    "dev",
}


def load_table(source: str, split: str) -> datasets.Dataset:
    """Return one split of a table.

    A single file holds one split: the one that its name says (``train.parquet``, ``test-00000-of-00001.parquet``),
    else ``train``. In a folder `datasets` finds the splits by file and folder names.

    Args:
        source: A parquet or arrow file, a folder (of such files, of images, or from ``save_to_disk``), or a hub id.
        split: The split to return.

    Raises:
        PruningError: If there is no such source or split, or it cannot be read.
    """
    path = Path(source).expanduser()
    try:
        with _without_bars():
            found = _load(source, path)
    except PruningError:
        raise
    except Exception as error:  # `datasets` has no common base class for what goes wrong while it reads
        if "corresponds to no data" in str(error):
            raise PruningError(
                f"data {source!r}: {_empty_files(path)} no rows; add rows or remove it"
            ) from error
        cause = f" ({error.__cause__})" if error.__cause__ else ""  # what is wrong often stands there alone
        raise PruningError(
            f"data {source!r} cannot be read: {type(error).__name__}: {error}{cause}"
        ) from error
    splits = found if isinstance(found, dict) else {"train": found}
    if split not in splits:
        raise PruningError(
            f"data {source!r} has no split {split!r}; its splits: {', '.join(map(str, splits))}. "
            f"Name one of them in data.split or data.eval_split{_how_to_split(path)}"
        )
    return splits[split]


def _how_to_split(path: Path) -> str:
    """Return the other way out where a split is missing: files laid out so that there are two."""
    if path.is_file() or any(next(path.rglob(f"*{suffix}"), None) for suffix in FILE_FORMATS):
        return ", or give a folder that holds a train.parquet and a test.parquet"
    if path.is_dir():
        return (
            f", or put the images under {path}/train/<class>/ and those held out under {path}/test/<class>/"
        )
    return ""


def _split_of(path: Path) -> str:
    """Return the split that a file's name says, ``train`` if it says none."""
    words = path.stem.lower().replace("-", "_").replace(".", "_").split("_")
    for split, names in {"test": ("test",), "validation": ("validation", "valid", "val", "dev")}.items():
        if any(name in words for name in names):
            return split
    return "train"


def _load(source: str, path: Path) -> datasets.Dataset | datasets.DatasetDict:
    """Return what `source` holds, read in the way that fits what it is."""
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise PruningError(f"data {source!r}: a single file must end in {' or '.join(FILE_FORMATS)}")
        return datasets.load_dataset(FILE_FORMATS[path.suffix], data_files={_split_of(path): str(path)})
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(path))
    if path.is_dir():
        return datasets.load_dataset(str(path))
    if _is_path(source):
        raise PruningError(f"data {source!r}: no such file or folder (looked at {path.absolute()})")
    return datasets.load_dataset(source)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the bars of `datasets` out of logs; on a terminal they stay."""
    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def _empty_files(path: Path) -> str:
    """Return the parquet files at `path` that hold no rows, and the verb that goes with them."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    empty = [str(file) for file in files if file.suffix == ".parquet" and not read_metadata(file).num_rows]
    return f"{', '.join(empty)} {'has' if len(empty) == 1 else 'have'}" if empty else "a split has"


def _is_path(source: str) -> bool:
    """Tell whether `source` can only be meant as a path: a hub id is ``name`` or ``owner/name``."""
    return source.startswith(("/", ".", "~")) or source.count("/") > 1 or Path(source).suffix in FILE_FORMATS


def open_table(
    source: str,
    *,
    split: str,
    channels: int,
    resolution: int,
    image_column: str | None,
    label_column: str | None,
    caption_column: str | None,
) -> ImageData:
    """Open one split of a table as images; see `pruning.data.open_images`."""
    table = load_table(source, split)
    name = f"{source}[{split}]"
    if len(table) == 0:
        raise PruningError(f"data {name} is empty: it holds no rows")
    images = _image_column(table, image_column, name)
    labels = _column(table, label_column, LABEL_NAMES, _is_label, "label", name)
    if labels and label_column is None and _are_no_classes(table, labels):
        labels = None
    captions = _column(table, caption_column, CAPTION_NAMES, _is_caption, "caption", name)
    encoded = table.select_columns([images])
    if isinstance(table.features[images], datasets.Image):
        encoded = encoded.cast_column(images, datasets.Image(decode=False))

    def fetch(index: int) -> Tensor:
        cell = None
        try:
            cell = encoded[index][images]
            return to_tensor(open_image(cell), channels, resolution)
        except Exception as error:  # PIL raises many types; all of them mean this row
            file = f", file {cell['path']}" if isinstance(cell, dict) and cell.get("path") else ""
            raise UnreadableRow(
                f"data {name}: the image in row {index} (column {images!r}{file}) cannot be read: {error}; "
                "repair or drop the row"
            ) from error

    by_label = table.select_columns([labels]) if labels else None
    by_caption = table.select_columns([captions]) if captions else None
    return ImageData(
        name=name,
        shape=(channels, resolution, resolution),
        length=len(table),
        fetch=fetch,
        fetch_label=None
        if by_label is None
        else lambda index: _label(by_label[index][labels], index, name, labels),
        fetch_caption=None if by_caption is None else lambda index: _caption(by_caption[index][captions]),
        num_classes=None if labels is None else _num_classes(table, labels),
    )


def _image_column(table: datasets.Dataset, asked: str | None, name: str) -> str:
    """Return the column of images: the one asked for, else the only one of an image type, else one named so."""
    features = table.features
    if asked is not None:
        _check_column(table, asked, "image", name)
        if not _is_image(features[asked]):
            raise PruningError(f"data {name}: column {asked!r} holds {features[asked]}, not images")
        return asked
    found = [column for column in features if _is_image(features[column])]
    if not found:
        have = ", ".join(f"{column} ({_kind(features[column])})" for column in features)
        raise PruningError(f"data {name} has no image column; its columns: {have}")
    named = [column for column in found if column in IMAGE_NAMES]
    if len(found) == 1 or len(named) == 1:
        return (named or found)[0]
    raise PruningError(
        f"data {name} has several image columns: {', '.join(found)}; name one with image_column"
    )


def _column(
    table: Any, asked: str | None, names: tuple[str, ...], fits: Any, what: str, name: str
) -> str | None:
    """Return the label or caption column: the one asked for, else one with a usual name, else None."""
    if asked is not None:
        _check_column(table, asked, what, name)
        if not fits(table.features[asked]):
            raise PruningError(
                f"data {name}: column {asked!r} holds {_kind(table.features[asked])}, no {what}s"
            )
        return asked
    return next(
        (column for column in names if column in table.features and fits(table.features[column])), None
    )


def _are_no_classes(table: datasets.Dataset, labels: str) -> bool:
    """Tell what `datasets` makes of images without folders of classes: no values, or the folders of splits."""
    names = getattr(table.features[labels], "names", None)
    return all(value is None for value in table[labels]) or bool(names and SPLIT_FOLDERS.issuperset(names))


def _check_column(table: datasets.Dataset, column: str, what: str, name: str) -> None:
    if column not in table.features:
        raise PruningError(
            f"data {name} has no column {column!r} (asked as {what}_column); its columns: {', '.join(table.features)}"
        )


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):  # written without the metadata of `datasets`
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in (
        "binary",
        "large_binary",
    )


def _is_label(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel) or "int" in str(getattr(feature, "dtype", ""))


def _is_caption(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)  # several captions an image: the first is taken
    return getattr(inner, "dtype", None) in ("string", "large_string") and not isinstance(
        feature, datasets.ClassLabel
    )


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _label(value: Any, index: int, name: str, column: str | None) -> int:
    if value is None or int(value) < 0:
        raise UnreadableRow(
            f"data {name}: row {index} has the label {value!r} in column {column!r}; expected 0 or more"
        )
    return int(value)


def _caption(value: Any) -> str:
    return str((value or [""])[0] if isinstance(value, list) else value or "")


def _num_classes(table: datasets.Dataset, column: str) -> int:
    feature: Any = table.features[column]
    if type(feature) is datasets.ClassLabel:
        return len(feature.names)
    return max((value for value in table[column] if value is not None), default=-1) + 1
