"""From text to nested mappings: YAML files and ``key.path=value`` overrides.

YAML is read as its version 1.2 says: ``on``, ``off``, ``yes`` and ``no`` are words (``score.omega: off``), only
``true`` and ``false`` are truth values, and ``1e-4`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from pruning.errors import PruningError

COMMAND_LINE = "command line"


def read_yaml(path: Path) -> dict[Any, Any]:
    """Return the mapping in a YAML file.

    Raises:
        PruningError: If it cannot be read, or is no mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PruningError(f"{path}: cannot be read as YAML: {error}") from error
    if data is not None and not isinstance(data, dict):
        raise PruningError(f"{path}: a recipe is a mapping of sections, found a {type(data).__name__}")
    return data or {}


def read_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """Return ``key.path=value`` entries, values in YAML, as nested mappings; of two for one key the last holds.

    Raises:
        PruningError: For an entry that is none, or a value that is no YAML.
    """
    found: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        parts = key.split(".")
        if not equals or not all(parts):
            raise PruningError(f"{COMMAND_LINE}: {entry!r} is not an override; write key.path=value")
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise PruningError(
                f"{COMMAND_LINE}: {entry!r}: the value cannot be read as YAML: {error}"
            ) from error
        place = found
        for part in parts[:-1]:
            inner = place.get(part)
            place[part] = inner = inner if isinstance(inner, dict) else {}
            place = inner
        place[parts[-1]] = value
    return found


class _Loader(yaml.SafeLoader):
    """Plain types only, no key twice, and the words and numbers of YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping, refusing a key that stands there twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep=deep)


_REPLACED = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _REPLACED[0], re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    _REPLACED[1],
    re.compile(
        r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
