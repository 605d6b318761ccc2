"""Rows -> images, labels and captions, by the columns that hold them; pixels are decoded when asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import datasets
from torch import Tensor

from pruning.data.decode import open_image, to_tensor
from pruning.data.images import ImageData, UnreadableRow
from pruning.data.names import split_named
from pruning.data.prompts import Prompts
from pruning.data.rows import load_rows
from pruning.errors import PruningError

logger = logging.getLogger(__name__)

IMAGE_NAMES = ("image", "img")
NAMES = {
    "image": (),  # an image column is known by its type
    "label": ("label", "labels", "class", "fine_label"),
    "caption": ("caption", "text", "prompt"),
}
"""The usual names of columns, by what they hold."""


def open_table(
    source: str, split: str, shape: tuple[int, int, int], columns: Mapping[str, str | None]
) -> ImageData:
    """Open one split of a table as images of `shape`, by the columns that were asked for; see `open_images`."""
    rows, name = load_rows(source, split), f"{source}[{split}]"
    _say(source, rows.found)
    table = rows.table
    if len(table) == 0:
        raise PruningError(f"data {name} is empty: it holds no rows")
    images, labels, captions = (_column(table, columns[what], what, name) for what in NAMES)
    images = images or _image_column(table, name)
    if labels and columns["label"] is None and _are_no_classes(table, labels):
        labels = None
    encoded = table.select_columns([images])
    if isinstance(table.features[images], datasets.Image):
        encoded = encoded.cast_column(images, datasets.Image(decode=False))

    def fetch(index: int) -> Tensor:
        cell = None
        try:
            cell = encoded[index][images]
            return to_tensor(open_image(cell), *shape[:2])
        except Exception as error:  # PIL raises many types; all of them mean this row
            file = f", file {cell['path']}" if isinstance(cell, dict) and cell.get("path") else ""
            raise UnreadableRow(
                f"data {name}: the image in row {index} (column {images!r}{file}) cannot be read: {error}; "
                "repair or drop the row"
            ) from error

    def fetch_label(index: int) -> int:
        value = by_label[index][labels]
        if value is None or int(value) < 0:
            raise UnreadableRow(
                f"data {name}: row {index} has the label {value!r} in column {labels!r}; expected 0 or more"
            )
        return int(value)

    by_label = table.select_columns(labels or [])
    return ImageData(
        name=name,
        shape=shape,
        length=len(table),
        fetch=fetch,
        fetch_label=fetch_label if labels else None,
        fetch_caption=_fetch_text(table, captions) if captions else None,
        class_names=rows.class_names or _class_names(table, labels) if labels else None,
    )


def open_captions(source: str, split: str, column: str | None) -> Prompts:
    """Open the captions of a split of a table, with or without images; see `pruning.data.prompts.open_prompts`."""
    rows, name = load_rows(source, split), f"{source}[{split}]"
    _say(source, rows.found)
    if len(rows.table) == 0:
        raise PruningError(f"data {name} is empty: it holds no rows")
    captions = _column(rows.table, column, "caption", name)
    if captions is None:
        raise PruningError(
            f"{name} has no captions to generate from; name their column in data.caption_column"
        )
    return Prompts(name, len(rows.table), _fetch_text(rows.table, captions))


def _fetch_text(table: datasets.Dataset, column: str) -> Callable[[int], str]:
    """Return what reads the text of a row; of several in a list the first."""
    texts = table.select_columns(column)

    def fetch(index: int) -> str:
        value = texts[index][column]
        return str((value or [""])[0] if isinstance(value, list) else value or "")

    return fetch


@lru_cache(maxsize=64)
def _say(source: str, found: str) -> None:
    """Log what was found, once: a run opens its data several times."""
    if found:
        logger.info("data %s: %s", source, found)


def _column(table: datasets.Dataset, asked: str | None, what: str, name: str) -> str | None:
    """Return the column that was asked for, else one that fits and has one of the usual names, else None."""
    features, fits = table.features, HOLDS[what]
    if asked is None:
        return next((column for column in NAMES[what] if column in features and fits(features[column])), None)
    if asked not in features:
        raise PruningError(
            f"data {name} has no column {asked!r} (asked as {what}_column); its columns: {', '.join(features)}"
        )
    if not fits(features[asked]):
        raise PruningError(f"data {name}: column {asked!r} holds {_kind(features[asked])}, no {what}s")
    return asked


def _image_column(table: datasets.Dataset, name: str) -> str:
    """Return the only column of an image type, else the only one of these that is named so."""
    features = table.features
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


def _are_no_classes(table: datasets.Dataset, labels: str) -> bool:
    """Tell what the hub makes of images without folders of classes: no values, or the folders of splits."""
    names = getattr(table.features[labels], "names", None)
    return all(value is None for value in table[labels]) or bool(names and all(map(split_named, names)))


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):  # written without the metadata of `datasets`
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return isinstance(feature, datasets.Image) or _kind(feature) in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    return isinstance(feature, datasets.ClassLabel) or "int" in _kind(feature)


def _is_caption(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)  # several captions an image: the first is taken
    return _kind(inner) in ("string", "large_string") and not isinstance(feature, datasets.ClassLabel)


HOLDS = {"image": _is_image, "label": _is_label, "caption": _is_caption}
"""Tells of the type of a column whether it holds images, labels or captions."""


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", type(feature).__name__))


def _class_names(table: datasets.Dataset, column: str) -> Mapping[int, str]:
    """Return the classes that a column tells of: all that its type names, else the values that occur."""
    feature: Any = table.features[column]
    if type(feature) is datasets.ClassLabel:
        return dict(enumerate(feature.names))
    return {value: str(value) for value in sorted({v for v in table[column] if v is not None and v >= 0})}
