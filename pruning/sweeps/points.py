"""The runs of a sweep: every combination of some values of some settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pruning.errors import PruningError
from pruning.recipe import load_recipe

RANGE = re.compile(r"\s*(?P<low>[-+.\deE]+?)\.\.(?P<high>[-+.\deE]+)\s*")


@dataclass(frozen=True)
class Axis:
    """A setting and what it is set to.

    Attributes:
        key: Of the recipe, dotted.
        values: As they are written in an override.
        range: The lowest and the highest number, among which a search chooses, in place of values; whole ones if both
            are written so.
    """

    key: str
    values: tuple[str, ...] = ()
    range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: Of the run, made of what sets it apart.
        settings: What is set, by key.
        overrides: All that is set on top of the recipe: the sweep's own words, and then `settings`.
        run_dir: Where it lies.
    """

    name: str
    settings: Mapping[str, str]
    overrides: tuple[str, ...]
    run_dir: Path

    @property
    def words(self) -> tuple[str, ...]:
        """Overrides of the recipe that make it this run."""
        return (*self.overrides, f"name={self.name}", 'title=""', f"run_dir={self.run_dir}")


def read_axes(words: Sequence[str]) -> list[Axis]:
    """Return the axes that are written as ``key=a,b,c`` or, of numbers, as ``key=low..high``.

    Raises:
        PruningError: For a word that is neither, an empty value, a value or a key that is there twice.
    """
    axes: list[Axis] = []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise PruningError(f"grid {word!r}: write KEY=VALUE,VALUE,… or KEY=LOW..HIGH")
        if key in [axis.key for axis in axes]:
            raise PruningError(f"grid {word!r}: {key} is there twice; write all its values in one word")
        axes.append(
            _range(word, key, found) if (found := RANGE.fullmatch(text)) else _values(word, key, text)
        )
    return axes


def _range(word: str, key: str, found: re.Match[str]) -> Axis:
    try:
        low, high = (_number(found[side]) for side in ("low", "high"))
    except ValueError:
        raise PruningError(f"grid {word!r}: a range is of two numbers, such as 0.3..0.8") from None
    if not low < high:
        raise PruningError(f"grid {word!r}: a range goes up, from the lower number to the higher")
    return Axis(key, range=(low, high))


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _values(word: str, key: str, text: str) -> Axis:
    values = tuple(part.strip() for part in _split(text))
    if not all(values):
        raise PruningError(f"grid {word!r}: there is nothing between two commas, or after the last")
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise PruningError(f"grid {word!r}: {twice[0]} is there twice")
    return Axis(key, values)


def _split(text: str) -> list[str]:
    """Split at commas that are in no bracket and no quotes, as of lists."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{(":
            depth += 1
        elif sign in "]})":
            depth -= 1
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Return every combination of the values of some axes, the last axis fastest.

    Raises:
        PruningError: For a range, which has no end of values.
    """
    if ranges := [axis.key for axis in axes if axis.range]:
        raise PruningError(
            f"grid {ranges[0]}: a range is for a search; say how many runs it may take with --search N, or write values"
        )
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in product(*(axis.values for axis in axes))]


def point(recipe: str, settings: Mapping[str, str], folder: Path, *, overrides: Sequence[str] = ()) -> Point:
    """Return the run with some settings; its recipe has been read and checked.

    Raises:
        PruningError: If that is no valid recipe; it names the settings.
    """
    name = name_of(settings)
    words = (*overrides, *(f"{key}={value}" for key, value in settings.items()))
    found = Point(name, dict(settings), words, folder / name)
    try:
        load_recipe(recipe, found.words)
    except PruningError as error:
        raise PruningError(f"the run {name}: {error}") from error
    return found


def name_of(settings: Mapping[str, str]) -> str:
    """Return the name of a run: the ends of the keys, as short as tells them apart, and the values."""
    parts = []
    for key, value in settings.items():
        steps = key.split(".")
        length = next(
            n
            for n in range(1, len(steps) + 1)
            if n == len(steps) or all(k == key or k.split(".")[-n:] != steps[-n:] for k in settings)
        )
        parts.append("_".join(steps[-length:]) + "-" + _plain(value))
    return "_".join(parts)


def _plain(value: str) -> str:
    """Return a value as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", value).strip("-") or "none"
