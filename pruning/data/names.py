"""What names of files and folders say: their order, the split, the number of a class; torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from pruning.errors import PruningError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits and the usual spellings of their names, in which capitals do not matter."""

_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}


def named(names: Sequence[str], most: int = 4) -> str:
    """Return a few names for a message, and how many more there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def natural_key(name: str) -> tuple[Any, ...]:
    """Return what sorts names as people count: ``class2`` before ``class10``, capitals beside small letters."""
    return (*_meaning(name), name)


def _meaning(name: str) -> tuple[Any, ...]:
    """Return the words and numbers of a name."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts))


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


def is_number(name: str) -> bool:
    """Tell whether a class is named by its own number; what is longer than 9 digits is a date or the like."""
    return name.isascii() and name.isdigit() and len(name) <= 9


def number_classes(names: Iterable[str], where: str) -> dict[str, int]:
    """Return the number of each class of all splits.

    Where all names are numbers they are the classes' own: folders ``3``, ``5`` and ``7`` are the classes 3, 5 and 7.
    Otherwise classes are counted from 0 in natural order, in which ``class2`` comes before ``class10``.

    Raises:
        PruningError: If two names differ in capitals or leading zeros alone, or only some are numbers; it begins with
            `where`.
    """
    ordered = sorted(set(names), key=natural_key)
    for pair in pairwise(ordered):
        if _meaning(pair[0]) == _meaning(pair[1]):
            raise PruningError(
                f"{where}: the class folders {named(pair)} have names that differ in capitals or leading zeros alone; "
                "give one class one name in every split"
            )
    others = [name for name in ordered if not is_number(name)]
    if others and len(others) < len(ordered):
        raise PruningError(
            f"{where}: the class folders {named(others)} are no numbers from 0 to 999999999, while others are, so "
            "which classes these are is not known; name all of them by numbers, or none (class3 in place of 3)"
        )
    return {name: place if others else int(name) for place, name in enumerate(ordered)}
