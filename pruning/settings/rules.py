"""Rules for the values of knobs; each returns what is wrong, or None."""

from __future__ import annotations

import re
from typing import Any

from pruning.errors import shown
from pruning.registry import did_you_mean, names_of, unknown
from pruning.settings.section import Rule


def at_least(smallest: float) -> Rule:
    """The value is `smallest` or more."""
    return lambda value: None if value >= smallest else f"{value} must be at least {smallest:g}"


def above(low: float) -> Rule:
    """The value is more than `low`."""
    return lambda value: None if value > low else f"{value} must be > {low:g}"


def within(interval: str, hint: str = "") -> Rule:
    """The value lies in an interval, written as in mathematics: ``[0, 1)``; `hint` says what the number means."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def rule(value: Any) -> str | None:
        over = value >= low if interval[0] == "[" else value > low
        under = value <= high if interval[-1] == "]" else value < high
        return None if over and under else f"{value} is not in {interval}{hint and f'; {hint}'}"

    return rule


def one_of(*valid: str) -> Rule:
    """The value is one of these words."""

    def rule(value: Any) -> str | None:
        if value in valid:
            return None
        return f"{shown(value)} is not valid{did_you_mean(str(value), valid)}; valid: {', '.join(valid)}"

    return rule


def matches(pattern: str, words: str) -> Rule:
    """The whole text matches a regular expression; `words` say what that is."""
    return lambda value: None if re.fullmatch(pattern, value, re.IGNORECASE) else f"{shown(value)} {words}"


def registered(kind: str) -> Rule:
    """The value is the name of a plug-in of this kind, such as a criterion."""

    def rule(value: Any) -> str | None:
        valid = names_of(kind)
        return None if value in valid else unknown(kind, value, valid)

    return rule
