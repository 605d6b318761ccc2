"""The one error of the project; torch-free, so that the command can say it before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class PruningError(ValueError):
    """A user's mistake or an impossible request; the message names value, rule and place."""


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8; other bytes come from a terminal as halves of pairs."""
    return not re.search(r"[\ud800-\udfff]", text)


def shown(value: Any, most: int = 60) -> str:
    """Return a value for a message, of so many characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of thousands of digits
        return f"a value of type {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[:most]}…"


@contextmanager
def failing(name: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Let what goes wrong in the call of a foreign `name` say what it was given; it becomes a PruningError."""
    try:
        yield
    except PruningError:
        raise
    except Exception as error:  # what is not ours has its own checks
        reason = str(error).strip().partition("\n")[0]
        raise PruningError(
            f"{name} fails with {shown(dict(given), 200)}: {type(error).__name__}: {reason}"
        ) from error


@contextmanager
def named(place: str, errors: type[ValueError] = ValueError) -> Iterator[None]:
    """Put `place` before the message of such errors; they become PruningErrors, if they are none."""
    try:
        yield
    except errors as error:
        kind = type(error) if isinstance(error, PruningError) else PruningError
        raise kind(f"{place}: {error}") from error
