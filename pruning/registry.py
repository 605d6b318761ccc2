"""A typed registry: names to functions, filled by one decorator a file.

A package of plug-ins (``importance``, ``groups``, …) calls `import_submodules` in its ``__init__``, so that
a new file is a new entry and nothing else has to be edited.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to entries of one kind.

    Args:
        kind: What the entries are, for error messages, e.g. ``"criterion"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files its argument under `name`.

        Raises:
            ValueError: If `name` is taken.
        """

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice; names must be unique")
            self._entries[name] = entry
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"unknown {self.kind} {name!r}{hint}; valid: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def items(self) -> list[tuple[str, T]]:
        """Return ``(name, entry)`` pairs sorted by name."""
        return sorted(self._entries.items())


def import_submodules(package: str, path: Iterable[str]) -> None:
    """Import every module of `package`; an ImportError in one of them is let through."""
    for info in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{info.name}")
