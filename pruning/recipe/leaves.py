"""From trees of text to typed values: a leaf is read as the schema says, and what does not fit is a problem."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any

import yaml

from pruning.errors import shown
from pruning.recipe.reading import Plain, Word, parse
from pruning.recipe.schema import Recipe
from pruning.settings.section import (
    fits,
    hints_of,
    is_free,
    is_section,
    item_section,
    knobs_of,
    options_of,
    type_words,
)

RENAMED = {"score.omega": "score.weighting", "calibrate.omega": "calibrate.sink_weights"}
"""Keys of earlier versions."""
ANCHORS = "x-"
"""Keys that begin so hold YAML anchors, for ``<<: *name``, and are no part of the recipe."""

_NULL = ("", "~", "null", "Null", "NULL")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?\d+")
_QUOTED = re.compile(r"""(['"])((?:(?!\1).)*)\1""", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Misfit(ValueError):
    """A value that is not of the type that the schema says."""


def typed(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe's mapping with typed leaves, and one message for every unknown key and every misfit."""
    problems: list[str] = []
    tree = {key: inner for key, inner in tree.items() if not key.startswith(ANCHORS)}
    return _section(tree, Recipe, "", problems), problems


def _section(tree: Any, schema: type, prefix: str, problems: list[str]) -> dict[str, Any]:
    hints, values = hints_of(schema), dict[str, Any]()
    if not isinstance(tree, Mapping):
        found = "null" if _read(tree) is None else shown(_read(tree))
        off = f"; {prefix}enabled=false switches it off" if "enabled" in hints else ""
        raise _Misfit(f"{found} is not a mapping; its keys are {', '.join(hints)}{off}")
    for key, inner in tree.items():
        path = f"{prefix}{key}"
        if key in hints:
            values[str(key)] = _value(inner, hints[key], path, problems)
        else:
            problems.append(f"{path} is unknown{_nearest(schema, path, prefix)}")
    return values


def _value(tree: Any, hint: Any, path: str, problems: list[str]) -> Any:
    """Return what is written at a path as the type of a hint; None if it is a misfit, which `problems` then says."""
    try:
        if isinstance(tree, Word):
            tree = _opened(tree, hint)
        elif (is_section(hint) or is_free(hint)) and isinstance(tree, Plain) and not tree:
            tree = {}  # ``recover:`` and nothing below
        if is_section(hint):
            return _section(tree, hint, f"{path}.", problems)
        if is_free(hint):
            return _mapping(tree)
        item = item_section(hint)
        if item is None or not isinstance(tree, list):
            return _leaf(tree, hint)
        return [_value(entry, item, f"{path}[{place}]", problems) for place, entry in enumerate(tree)]
    except _Misfit as misfit:
        problems.append(f"{path}: {misfit}")


def _mapping(tree: Any) -> dict[str, Any]:
    """Return a mapping of free keys, its leaves as YAML reads them."""
    if not isinstance(tree, Mapping):
        raise _Misfit(f"{shown(_read(tree))} is not a mapping; write name: value below it")
    return {str(key): _free(inner) for key, inner in tree.items()}


def _free(tree: Any) -> Any:
    """Return a value of which no type is known; one that is not of JSON is a misfit."""
    if isinstance(tree, Word):
        tree = _parsed(tree)
    if isinstance(tree, Mapping):
        return _mapping(tree)
    if isinstance(tree, list):
        return [_free(entry) for entry in tree]
    value = _read(tree)
    if not fits({"": value}, dict[str, Any]):
        raise _Misfit(f"{shown(value)} must be a finite number")
    return value


def _opened(word: Word, hint: Any) -> Any:
    """Return the value of an override: text as it stands but for quotes around all of it, anything else by YAML."""
    options = options_of(hint)
    if str in options:
        if type(None) in options and word in ("", "null"):
            return Plain(word)
        quoted = _QUOTED.fullmatch(word)
        return quoted[2] if quoted else str(word)
    return _parsed(word)


def _parsed(word: Word) -> Any:
    """Return an override as YAML reads it."""
    try:
        return parse(word)
    except yaml.YAMLError as error:
        raise _Misfit(f"{shown(str(word))} cannot be read as YAML: {error}") from error


def _leaf(tree: Any, hint: Any) -> Any:
    """Return a leaf, or a list of leaves, as one of the types that the hint allows."""
    options, value = options_of(hint), _read(tree)
    if isinstance(tree, list):
        for option in options:
            if typing.get_origin(option) is list:
                return [_leaf(entry, typing.get_args(option)[0]) for entry in tree]
    if value is None and type(None) in options:
        return None
    if isinstance(tree, str) and (str in options or "${" in tree):  # the latter is filled in later
        if re.fullmatch(r"\\*\?\?\?", tree):
            raise _Misfit(f"{str(tree)!r} stands for a value that is missing; give one")
        return str(tree)
    if not fits(value, hint):
        raise _Misfit(f"{shown(value)} is a {type(value).__name__}; expected {type_words(hint)}")
    return float(value) if isinstance(value, int) and float in options else value


def _read(leaf: Any) -> Any:
    """Return what a leaf is by the core schema of YAML 1.2: ``off`` is a word, ``010`` is ten, ``1e-4`` a number."""
    if not isinstance(leaf, Plain):
        return leaf
    if leaf in _NULL:
        return None
    if leaf in _TRUTH:
        return _TRUTH[leaf]
    if _WHOLE.fullmatch(leaf):
        return int(leaf)
    if _NUMBER.fullmatch(leaf):
        return float(re.sub(r"\.(inf|nan)", r"\1", leaf, flags=re.IGNORECASE))
    return str(leaf)


def _nearest(schema: type, path: str, prefix: str) -> str:
    """Return a hint: the new name, the nearest key beside it, else the same or a near key in another section."""
    if path in RENAMED:
        return f"; it is called {RENAMED[path]} now"
    key = path.removeprefix(prefix)
    if beside := difflib.get_close_matches(key, hints_of(schema), n=1):
        return f"; did you mean {prefix}{beside[0]}?"
    elsewhere: dict[str, str] = {}
    for leaf in knobs_of(Recipe):
        parts = leaf.key.split(".")
        for depth, name in enumerate(parts, start=1):
            elsewhere.setdefault(name, ".".join(parts[:depth]))
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else f"; valid here: {', '.join(hints_of(schema))}"
