"""From text to trees: YAML files and ``key.path=value`` overrides, before any type is known.

YAML's guesses at types are not asked: a leaf stays the text that was written, and `pruning.recipe.leaves` reads it as
the schema says. So ``name: 007`` is the name 007, ``seed: 010`` is ten, and ``score.weighting: off`` is a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from pruning.errors import PruningError, shown

COMMAND_LINE = "command line"
_PLAIN, _YAML = "plain", "tag:yaml.org,2002:"


class Plain(str):
    """A leaf without quotes, which may stand for null, a number or a truth value; one with quotes is a plain `str`."""


class Word(str):
    """What stands behind the = of an override: text as it stands where the schema wants text, else YAML."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; one that cannot be read, or holds something else, is a PruningError."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PruningError(f"{path}: cannot be read as YAML: {error}") from error
    if isinstance(found, dict):
        return found
    if found:
        kind = "list" if isinstance(found, list) else "single value"
        raise PruningError(f"{path}: a recipe is a mapping of sections, found a {kind}")
    return {}


def read_overrides(entries: Sequence[str]) -> list[dict[str, Any]]:
    """Return every ``key.path=value`` entry as nested mappings around a `Word`; other entries are a PruningError."""
    found = []
    for entry in entries:
        key, equals, text = entry.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise PruningError(f"{COMMAND_LINE}: {shown(entry)} is not an override; write key.path=value")
        tree: Any = Word(text)
        for part in reversed(parts):
            tree = {part: tree}
        found.append(tree)
    return found


def parse(text: str) -> Any:
    """Return a YAML document as mappings and lists of leaves; an empty one is an empty leaf.

    Raises:
        yaml.YAMLError: If it is no YAML, is too deep, or holds a key twice, a foreign tag, or an alias of itself.
    """
    try:
        found = yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("its lists or mappings are nested too deeply") from None
    return Plain() if found is None else found


class _Loader(yaml.SafeLoader):
    """Leaves scalars as they are written, and refuses a key that stands twice."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        _PLAIN: lambda loader, node: Plain(node.value),
        f"{_YAML}str": lambda loader, node: loader.construct_scalar(node),
        f"{_YAML}seq": lambda loader, node: loader.construct_sequence(node, deep=True),
        f"{_YAML}map": lambda loader, node: loader.construct_mapping(node, deep=True),
        None: yaml.SafeLoader.construct_undefined,
    }

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """Return the tag of a node that was written without one; ``<<`` merges mappings."""
        is_plain = kind is yaml.ScalarNode and implicit[0] and value != "<<"
        return _PLAIN if is_plain else super().resolve(kind, value, implicit)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys differ."""
        keys = [key for key, _ in node.value if key.tag == _PLAIN or key.tag == f"{_YAML}str"]
        names = [key.value for key in keys]
        if twice := [key for place, key in enumerate(keys) if key.value in names[:place]]:
            problem = f"the key {twice[0].value!r} stands here twice"
            raise yaml.constructor.ConstructorError(None, None, problem, twice[0].start_mark)
        return super().construct_mapping(node, deep)
