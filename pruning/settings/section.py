"""What a section of settings is: knobs, each written once with its default, its meaning and its rules.

::

    @section
    class Recover(Section):
        "Training the slim model back."

        steps: int = knob(1000, "Optimizer steps.", at_least(1))

A section is a frozen dataclass. Recipes are made of sections, and functions take them: ``calibrate(…, Calibrate())``.
`Section.problems` finds every value of a wrong type, every value that breaks a rule, and what does not fit together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, dataclass_transform

from pruning.errors import PruningError, is_unicode, shown

T = TypeVar("T")

Rule = Callable[[Any], str | None]
"""Returns what is wrong with a value, in words that follow it, or None. None as a value is never asked about."""

Problem = tuple[str, str]
"""A key path and what is wrong with its value."""


def knob(default: Any, meaning: str, *rules: Rule, neutral: bool = False) -> Any:
    """Return a field of a section.

    Args:
        default: Its default; a list is copied for each section, a type is called (``dict``: a free mapping).
        meaning: What it does, with its unit and what null stands for.
        rules: What values must fulfil.
        neutral: It changes how the work is done and not what comes out, so that results are reused across its values.
    """
    metadata = {"meaning": meaning, "rules": rules, "neutral": neutral}
    if isinstance(default, (type, list)):
        factory = default if isinstance(default, type) else default.copy
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose docstring lists its knobs."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    lines = [f"    {field.name}: {field.metadata['meaning']}" for field in dataclasses.fields(made)]  # type: ignore[arg-type]
    made.__doc__ = "\n".join([cls.__doc__ or "", "", "Attributes:", *lines])
    return made


class Section:
    """Base of all sections."""

    def problems(self) -> list[Problem]:
        """Return every value of a wrong type or that breaks a rule, then what does not fit together."""
        return list(self._own_problems()) or list(self.mismatches())

    def _own_problems(self) -> Iterator[Problem]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            key, value, hint = field.name, getattr(self, field.name), hints_of(type(self))[field.name]
            if not fits(value, hint):
                yield key, f"{shown(value)} is a {type(value).__name__}; expected {type_words(hint)}"
            elif isinstance(value, Section):
                yield from ((f"{key}.{inner}".rstrip("."), text) for inner, text in value.problems())
            elif item_section(hint):
                for position, entry in enumerate(value):
                    place = f"{key}[{position}]"
                    yield from ((f"{place}.{inner}".rstrip("."), text) for inner, text in entry.problems())
            else:
                entries = value if isinstance(value, (list, tuple)) else [value]
                yield from (
                    (key, text) for entry in entries if (text := _fault(entry, field.metadata["rules"]))
                )

    def mismatches(self) -> Iterator[Problem]:
        """Yield what does not fit together, given that every single value is right; sections override this."""
        return iter(())

    def check(self, place: str) -> None:
        """Raise one PruningError that names every problem; `place` is what the settings are for."""
        if found := self.problems():
            raise PruningError("; ".join(f"{place}: {key}: {text}" for key, text in found))


@dataclasses.dataclass(frozen=True)
class Knob:
    """A leaf of a tree of sections: its dotted path, type hint, default in JSON types, and what `knob` was told."""

    key: str
    type: Any
    default: Any
    meaning: str
    neutral: bool


def knobs_of(cls: type, prefix: str = "") -> Iterator[Knob]:
    """Yield the leaves of a section and of the sections inside it, in order; lists of sections are leaves."""
    defaults = cls()
    for field in dataclasses.fields(cls):
        key, hint = f"{prefix}{field.name}", hints_of(cls)[field.name]
        if is_section(hint):
            yield from knobs_of(hint, f"{key}.")
        else:
            yield Knob(
                key, hint, getattr(defaults, field.name), field.metadata["meaning"], field.metadata["neutral"]
            )


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """Return the type hints of a section by field."""
    return typing.get_type_hints(cls)


def is_section(hint: Any) -> bool:
    """Tell whether a type hint is a section."""
    return isinstance(hint, type) and issubclass(hint, Section)


def is_free(hint: Any) -> bool:
    """Tell whether a type hint is a mapping of free keys, whose values are of JSON types."""
    return typing.get_origin(hint) is dict


def item_section(hint: Any) -> type | None:
    """Return the section of which a list holds several, or None."""
    items = typing.get_args(hint) if typing.get_origin(hint) is list else ()
    return items[0] if items and is_section(items[0]) else None


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows: those of a union, else itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def type_words(hint: Any) -> str:
    """Return a type as a reader of YAML would say it."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    found = []
    for option in options_of(hint):
        if typing.get_origin(option) is list:
            item = typing.get_args(option)[0]
            found.append("a list of mappings" if is_section(item) else f"a list of {words[item]}")
        else:
            found.append("a mapping" if is_section(option) or is_free(option) else words[option])
    return " or ".join(found)


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the type of a hint; a whole number is a number, true is no number."""
    return any(_fits(value, option) for option in options_of(hint))


def _fits(value: Any, option: Any) -> bool:
    if is_free(option):
        return isinstance(value, dict) and _is_json(value)
    if typing.get_origin(option) is list:
        item = typing.get_args(option)[0]
        return isinstance(value, (list, tuple)) and all(fits(entry, item) for entry in value)
    if isinstance(value, bool):
        return option is bool
    return isinstance(value, (int, float) if option is float else option)


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(entry) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def _fault(value: Any, rules: tuple[Rule, ...]) -> str | None:
    """Return what is wrong with a value by the first rule that it breaks, or None."""
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} must be a finite number"
    if isinstance(value, str) and not is_unicode(value):
        return f"{shown(value)} cannot be written as UTF-8; type it anew"
    return next((text for rule in rules if (text := rule(value))), None)
