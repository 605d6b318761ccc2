"""Which number a class has, by its name; torch-free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pruning.data.listing import named, natural_key
from pruning.errors import PruningError

_NUMBER = re.compile(r"[0-9]+")


def is_number(name: str) -> bool:
    """Tell whether a class is named by its own number."""
    return _NUMBER.fullmatch(name) is not None


def number_classes(names: Iterable[str], where: str) -> dict[str, int]:
    """Return the number of each class.

    Where all names are numbers they are the classes' own: folders ``3``, ``5`` and ``7`` are the classes 3, 5 and 7.
    Otherwise classes are counted from 0 in natural order, in which ``class2`` comes before ``class10``.

    Args:
        names: The classes of all splits.
        where: Of what, for messages.

    Raises:
        PruningError: If two names differ in capitals or leading zeros alone.
    """
    ordered = sorted(set(names), key=natural_key)
    by_number = bool(ordered) and all(map(is_number, ordered))
    same = Counter(str(int(name)) if by_number else name.casefold() for name in ordered)
    for what, count in same.items():
        if count > 1:
            alike = [name for name in ordered if what in (name.casefold(), name.lstrip("0") or "0")]
            raise PruningError(
                f"{where}: the class folders {named(alike)} have names that differ in capitals or leading zeros alone; "
                "give one class one name in every split"
            )
    return {name: int(name) if by_number else place for place, name in enumerate(ordered)}


def classes_in_words(numbers: Mapping[str, int]) -> str:
    """Return names and numbers of classes for a message, those in the middle left out where there are many."""
    pairs = [f"{name} = {number}" for name, number in sorted(numbers.items(), key=lambda pair: pair[1])]
    return ", ".join(pairs if len(pairs) <= 6 else [*pairs[:3], "…", pairs[-1]])
