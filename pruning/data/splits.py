"""Which split a folder or a table file is, by its name; torch-free."""

from __future__ import annotations

import re

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits and the usual spellings of their names, in which capitals do not matter."""

_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}


def split_named(name: str) -> str | None:
    """Return the split whose name `name` is, or None."""
    return _SPLIT_OF.get(name.casefold())


def splits_in(name: str) -> set[str]:
    """Return the splits that are among the words of `name`; a word ends at whatever is no letter."""
    return {_SPLIT_OF[word] for word in re.split(r"[\W\d_]+", name.casefold()) if word in _SPLIT_OF}


def begins_as_split(name: str) -> bool:
    """Tell whether the first of several words of `name` is a split: ``train_images``, but not ``trains``."""
    first, *rest = re.split(r"[\W\d_]", name.casefold(), maxsplit=1)
    return bool(rest) and first in _SPLIT_OF
