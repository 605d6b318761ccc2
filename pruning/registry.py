"""A typed registry: names to functions, filled by one decorator per file.

A package of plug-ins calls `import_submodules` in its ``__init__``, so that a new file is a new entry and nothing else
is edited. What is registered in this package can be listed without importing it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pruning.errors import PruningError, shown

T = TypeVar("T")

_FOLDERS = {"criterion": "importance", "exporter": "export", "group kind": "groups"}
"""Folder of the plug-ins of a kind; what registers them has the last word of the kind as its name."""

_OPEN: dict[str, Registry[Any]] = {}
"""Registries whose modules have been imported, by kind."""


class Registry(Generic[T]):
    """Maps names to entries of one `kind`, which error messages name, e.g. ``"criterion"``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        _OPEN[kind] = self

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`; one that is taken is a ValueError."""

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice; names must be unique")
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise PruningError(unknown(self.kind, name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def items(self) -> list[tuple[str, T]]:
        """Return ``(name, entry)`` pairs sorted by name."""
        return sorted(self._entries.items())


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that there is no entry `name`, and which there are."""
    names = sorted(valid)
    return f"unknown {kind} {shown(name)}{did_you_mean(name, names)}; valid: {', '.join(names)}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return a hint at the one of `valid` that is nearest to `name`, with a space before it, or nothing."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def names_of(kind: str) -> dict[str, str]:
    """Return the names of all entries of a kind and the first line of their docstrings, sorted by name.

    Those of this package are read from its files, which imports nothing; others are known where they were registered.
    """
    mine = _declared(kind)
    entries = _OPEN[kind].items() if kind in _OPEN else ()
    others = {name: entry if isinstance(entry, str) else "" for name, entry in entries if name not in mine}
    return dict(sorted({**mine, **others}.items()))


@functools.cache
def _declared(kind: str) -> dict[str, str]:
    """Return the names that are registered in the folder of a kind, and what they mean.

    These are functions decorated with ``@criterion("name", …)``, of which the first docstring line says it, and
    constants ``NAME = kind("name", "meaning")``.
    """
    found = {}
    word = kind.rpartition(" ")[2]
    for path in sorted((Path(__file__).parent / _FOLDERS[kind]).glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            said = getattr(node, "decorator_list", None) or [getattr(node, "value", None)]
            for call in said:
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == word:
                    name, *meaning = (ast.literal_eval(argument) for argument in call.args)
                    text = (
                        (ast.get_docstring(node) or "") if isinstance(node, ast.FunctionDef) else meaning[0]
                    )
                    found[name] = text.partition("\n")[0]
    return found


def import_submodules(package: str, path: Iterable[str]) -> None:
    """Import every module of `package`; an ImportError in one of them is let through."""
    for info in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{info.name}")
