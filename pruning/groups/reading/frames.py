"""What an interpretation remembers: the variables of a function, and what it was told to look out for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from pruning.groups.reading.values import Value, join

Env = dict[str, Value]

DEPTH = 24
"""Calls within calls that are followed."""


class Raised(Exception):
    """The code that is read raises an error here: this way is none that a call takes."""


@dataclass(frozen=True)
class Call:
    """How one module was called by the code around it."""

    module: nn.Module
    args: tuple[Value, ...]
    kwargs: Mapping[str, Value]
    open: bool
    """There are further arguments, of which nothing is known."""


class Watcher(Protocol):
    """Told what the code of one module does with the modules in it."""

    def called(self, call: Call) -> None:
        """A module was called."""

    def read(self, module: nn.Module, name: str, value: Any) -> None:
        """An attribute of a module was read."""


@dataclass
class Frame:
    """One call of a Python function while it is interpreted."""

    globals: Mapping[str, Any]
    returned: list[Value] = field(default_factory=list)
    skipped: list[Env] = field(default_factory=list)
    """Variables at each ``continue`` of the loop that runs."""
    broken: list[Env] = field(default_factory=list)
    """Variables at each ``break`` of the loop that runs."""


@dataclass(frozen=True)
class Local:
    """A function that is defined inside another one."""

    node: Any
    frame: Frame
    env: Env
    call: Callable[..., Value]

    def __hash__(self) -> int:
        return id(self)


def merge(one: Env | None, other: Env | None, absent: str | None = None) -> Env | None:
    """Return the variables after two ways, of which None is one that does not go on."""
    if one is None or other is None:
        return one if other is None else other
    merged = {**one, **other}  # a variable that one way does not set is not read after it
    for name in one.keys() & other.keys():
        if one[name] is not other[name]:
            merged[name] = join(one[name], other[name], absent)
    return merged
