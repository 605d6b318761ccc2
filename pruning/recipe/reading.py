"""From text to trees: YAML files and ``key.path=value`` overrides, before any type is known.

YAML's guesses at types are not asked: a leaf stays the text that was written, and `pruning.recipe.leaves` reads it as
the schema says. So ``name: 007`` is the name 007, ``seed: 010`` is ten, and ``score.weighting: off`` is a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pruning.errors import PruningError

COMMAND_LINE = "command line"
_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_TAGS = tuple(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("str", "null", "bool", "int", "float", "timestamp", "value", "seq", "map")
)


@dataclass(frozen=True)
class Leaf:
    """A scalar as it was written.

    Attributes:
        text: Its text, quotes taken off.
        quoted: It was quoted, or tagged as text: it cannot stand for null, a number or a truth value.
    """

    text: str
    quoted: bool = False


Tree = dict[str, Any] | list[Any] | Leaf


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        PruningError: If it cannot be read, or is no mapping.
    """
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PruningError(f"{path}: cannot be read as YAML: {error}") from error
    if found is not None and not isinstance(found, dict):
        kind = "list" if isinstance(found, list) else "single value"
        raise PruningError(f"{path}: a recipe is a mapping of sections, found a {kind}")
    return found or {}


def read_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """Return ``key.path=value`` entries as nested mappings of trees; of two for one key the last holds.

    Raises:
        PruningError: For an entry that is none.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise PruningError(f"{COMMAND_LINE}: {entry!r} is not an override; write key.path=value")
        place = found
        for part in parts[:-1]:
            inner = place.get(part)
            place[part] = inner = _opened(inner)
            place = inner
        place[parts[-1]] = Word(text, entry)
    return found


@dataclass(frozen=True)
class Word:
    """What stands behind the = of an override: text where the schema wants text, else YAML.

    Attributes:
        text: As it came from the shell.
        entry: The whole override, for messages.
    """

    text: str
    entry: str

    def leaf(self) -> Leaf:
        """Return it as text; a quoted YAML scalar loses its quotes."""
        try:
            found = parse(self.text)
        except yaml.YAMLError:
            found = None
        return found if isinstance(found, Leaf) else Leaf(self.text, quoted=self.text != "")

    def tree(self) -> Tree | None:
        """Return it as YAML.

        Raises:
            PruningError: If it is none.
        """
        try:
            return parse(self.text)
        except yaml.YAMLError as error:
            raise PruningError(
                f"{COMMAND_LINE}: {self.entry!r}: the value cannot be read as YAML: {error}"
            ) from error


def _opened(inner: Any) -> dict[str, Any]:
    """Return what an earlier override put at a section as a mapping that later ones can change."""
    if isinstance(inner, Word):
        inner = inner.tree()
    return inner if isinstance(inner, dict) else {}


def parse(text: str) -> Tree | None:
    """Return a YAML document as a tree, None if it is empty.

    Raises:
        yaml.YAMLError: If it is no YAML, or holds a key twice, a foreign tag, or an alias of itself.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return None if node is None else _build(node, ())


def _build(node: yaml.Node, inside: tuple[int, ...]) -> Tree:
    if id(node) in inside:
        raise _error(node, "an alias stands for something that it is part of")
    if node.tag not in _TAGS:
        raise _error(node, f"the tag {node.tag!r} means nothing here")
    inside = (*inside, id(node))
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, inside)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, inside) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)
    tagged_as_text = node.tag == _STRING and node.style is None and _guessed(node.value) != _STRING
    return Leaf(node.value, quoted=node.style is not None or tagged_as_text)


def _mapping(node: yaml.MappingNode, inside: tuple[int, ...]) -> dict[str, Any]:
    """Return a mapping; ``<<`` puts the keys of other mappings under its own."""
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                found = _build(source, inside)
                if not isinstance(found, dict):
                    raise _error(value, "<< takes a mapping, or a list of mappings")
                merged = {**found, **merged}
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise _error(key, "a key must be a word")
        if key.value in own:
            raise _error(key, f"the key {key.value!r} stands here twice")
        own[key.value] = _build(value, inside)
    return {**merged, **own}


def _guessed(text: str) -> str:
    """Return the tag that YAML would give to a plain scalar."""
    return yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))


def _error(node: yaml.Node, message: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)
