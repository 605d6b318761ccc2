"""From trees of text to typed values: a leaf is read as the schema says, and what does not fit is a problem."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pruning.recipe.reading import Leaf, Tree, Word
from pruning.recipe.schema import Recipe
from pruning.settings import hints_of, is_section, item_section, knobs_of, options_of, type_words

RENAMED = {"score.omega": "score.weighting", "calibrate.omega": "calibrate.sink_weights"}
"""Keys of earlier versions."""
ANCHORS = "x-"
"""Keys that begin so hold YAML anchors, for ``<<: *name``, and are no part of the recipe."""

_NULL = ("", "~", "null", "Null", "NULL")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_WHOLE = re.compile(r"[-+]?\d+")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Misfit(ValueError):
    """A value that is not of the type that the schema says."""


def typed(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe's mapping with typed leaves, and one message for every unknown key and every misfit."""
    problems: list[str] = []
    tree = {key: inner for key, inner in tree.items() if not key.startswith(ANCHORS)}
    return _section(Recipe, tree, "", problems), problems


def _section(schema: type, tree: Mapping[str, Any], prefix: str, problems: list[str]) -> dict[str, Any]:
    hints, found = hints_of(schema), {}
    for key, inner in tree.items():
        path = f"{prefix}{key}"
        if key not in hints:
            problems.append(f"{path} is unknown{_nearest(schema, path, prefix)}")
            continue
        try:
            found[key] = _value(inner, hints[key], path, problems)
        except _Misfit as misfit:
            problems.append(f"{path}: {misfit}")
    return found


def _value(tree: Any, hint: Any, path: str, problems: list[str]) -> Any:
    if isinstance(tree, Word):
        tree = tree.leaf() if str in options_of(hint) else tree.tree()
    if is_section(hint):
        if (
            isinstance(tree, Leaf) and not tree.quoted and tree.text in _NULL
        ):  # ``recover:`` and nothing below
            return {}
        return _section(hint, _as_mapping(tree, hint), f"{path}.", problems)
    if item := item_section(hint):
        if not isinstance(tree, list):
            raise _Misfit(f"{_shown(tree)} is a {_kind(tree)}; expected {type_words(hint)}")
        found = []
        for position, entry in enumerate(tree):
            place = f"{path}[{position}]"
            try:
                found.append(_section(item, _as_mapping(entry, item), f"{place}.", problems))
            except _Misfit as misfit:
                problems.append(f"{place}: {misfit}")
        return found
    return _leaf(tree, hint)


def _as_mapping(tree: Any, schema: type) -> Mapping[str, Any]:
    if not isinstance(tree, Mapping):
        raise _Misfit(f"{_shown(tree)} is not a mapping; its keys are {', '.join(hints_of(schema))}")
    return tree


def _leaf(tree: Any, hint: Any) -> Any:
    """Return a leaf, or a list of leaves, as one of the types that the hint allows."""
    options = options_of(hint)
    for option in options:
        if typing.get_origin(option) is list and isinstance(tree, list):
            return [_leaf(entry, typing.get_args(option)[0]) for entry in tree]
    if isinstance(tree, Leaf):
        if not tree.quoted and tree.text in _NULL and type(None) in options:
            return None
        if str in options:
            return tree.text
        if "${" in tree.text:  # filled in later
            return tree.text
        value = _plain(tree)
        if int in options and type(value) is int:
            return value
        if float in options and type(value) in (int, float):
            return float(value)
        if bool in options and type(value) is bool:
            return value
    raise _Misfit(f"{_shown(tree)} is a {_kind(tree)}; expected {type_words(hint)}")


def _plain(tree: Any) -> Any:
    """Return what a tree is by the core schema of YAML 1.2: ``off`` is a word, ``010`` is ten, ``1e-4`` a number."""
    if isinstance(tree, Mapping):
        return {key: _plain(entry) for key, entry in tree.items()}
    if isinstance(tree, list):
        return [_plain(entry) for entry in tree]
    if not isinstance(tree, Leaf):
        return tree
    if tree.quoted:
        return tree.text
    if tree.text in _NULL:
        return None
    if tree.text in _TRUTH:
        return _TRUTH[tree.text]
    if _WHOLE.fullmatch(tree.text):
        return int(tree.text)
    if _NUMBER.fullmatch(tree.text):
        return float(re.sub(r"\.(inf|nan)", r"\1", tree.text, flags=re.IGNORECASE))
    return tree.text


def _shown(tree: Tree | None) -> str:
    return repr(_plain(tree))


def _kind(tree: Tree | None) -> str:
    return type(_plain(tree)).__name__


def _nearest(schema: type, path: str, prefix: str) -> str:
    """Return a hint: the new name, the nearest key beside it, else the same or a near key in another section."""
    if path in RENAMED:
        return f"; it is called {RENAMED[path]} now"
    key = path.removeprefix(prefix)
    beside = difflib.get_close_matches(key, hints_of(schema), n=1)
    if beside:
        return f"; did you mean {prefix}{beside[0]}?"
    elsewhere: dict[str, str] = {}
    for place in _keys(Recipe, ""):
        elsewhere.setdefault(place.rsplit(".", 1)[-1], place)
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.75)
    return f"; did you mean {elsewhere[near[0]]}?" if near else f"; valid here: {', '.join(hints_of(schema))}"


def _keys(schema: type, prefix: str) -> Iterator[str]:
    """Yield the key of every section and leaf."""
    sections = {name: hint for name, hint in hints_of(schema).items() if is_section(hint)}
    yield from (f"{prefix}{name}" for name in sections)
    yield from (leaf.key for leaf in knobs_of(schema, prefix))
