"""JSON values that know their place, so that every complaint can name it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 1e300


@dataclass(frozen=True)
class Node:
    """A JSON value, the file it came from and the path inside that file.

    A missing key is a node of value None; the readers below say what None means for them.
    """

    value: Any
    file: Path
    path: str = ""

    @property
    def place(self) -> str:
        """File and path, for error messages."""
        return f"{self.file}: {self.path}" if self.path else str(self.file)

    def _wrong(self, rule: str) -> ValueError:
        found = "nothing" if self.value is None else f"{self.value!r:.80} ({type(self.value).__name__})"
        return ValueError(f"{self.place}: must be {rule}, found {found}")

    def _child(self, key: str | int, value: Any) -> Node:
        step = f"[{key}]" if isinstance(key, int) else f".{key}" if self.path else key
        return Node(value, self.file, self.path + step)

    def get(self, key: str) -> Node:
        """Return the entry `key` of a mapping (an absent mapping has none)."""
        if self.value is not None and not isinstance(self.value, dict):
            raise self._wrong("a mapping")
        return self._child(key, (self.value or {}).get(key))

    def entries(self) -> dict[str, Node]:
        """Return all entries of a mapping; none if the node is absent."""
        if self.value is not None and not isinstance(self.value, dict):
            raise self._wrong("a mapping")
        return {key: self._child(key, value) for key, value in (self.value or {}).items()}

    def items(self) -> list[Node]:
        """Return the items of a list; none if the node is absent."""
        if self.value is not None and not isinstance(self.value, list):
            raise self._wrong("a list")
        return [self._child(index, value) for index, value in enumerate(self.value or [])]

    def plain(self) -> dict[str, Any]:
        """Return a mapping as it is; empty if the node is absent."""
        return {key: child.value for key, child in self.entries().items()}

    def text(self, default: str | None = None) -> str:
        """Return a string, or `default` if the node is absent."""
        if self.value is None and default is not None:
            return default
        if not isinstance(self.value, str):
            raise self._wrong("a string")
        return self.value

    def optional_text(self) -> str | None:
        """Return a string, or None if the node is absent."""
        return None if self.value is None else self.text()

    def flag(self, default: bool) -> bool:
        """Return a boolean, or `default` if the node is absent."""
        if self.value is None:
            return default
        if not isinstance(self.value, bool):
            raise self._wrong("true or false")
        return self.value

    def integer(self, low: int) -> int:
        """Return a whole number of at least `low`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < low:
            raise self._wrong(f"a whole number >= {low}")
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float | None:
        """Return a number in [`low`, `high`] (1e-6 of slack for rounding), or None if absent or not finite."""
        if self.value is None:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise self._wrong("a number")
        if not abs(self.value) <= LARGEST:  # NaN, infinity, or so large that a percentage of it is
            return None
        if not low - 1e-6 <= self.value <= high + 1e-6:
            raise self._wrong(
                f"a number >= {low:g}" if math.isinf(high) else f"a number in [{low:g}, {high:g}]"
            )
        return self.value

    def required_number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a number as `number` does, which has to be there and finite."""
        found = self.number(low, high)
        if found is None:
            raise self._wrong("a finite number")
        return found


def read_json(file: Path) -> tuple[Node, int]:
    """Read a JSON mapping; NaN and infinities become None and are counted.

    Raises:
        ValueError: If the file is not UTF-8 JSON or not a mapping.
    """
    broken: list[str] = []
    try:
        value = json.loads(file.read_text(encoding="utf-8"), parse_constant=broken.append)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: not JSON ({error}); the stage that writes it may have been cut off"
        ) from error
    node = Node(value, file)
    node.entries()
    return node, len(broken)
