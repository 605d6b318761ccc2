"""Lists and dictionaries of values, and what their methods do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from pruning.groups.reading.values import (
    NONE,
    ZERO,
    Entries,
    Items,
    Known,
    Shape,
    Sum,
    Value,
    free,
    is_zero,
    single,
)

LIST_METHODS = ("append", "extend", "insert", "pop", "remove", "reverse", "clear")
DICT_METHODS = ("get", "pop", "copy", "items", "keys", "values", "update")


def listed(value: Value, known: Callable[[Any], Value]) -> tuple[Value, ...] | None:
    """Return the items of a list whose length is known, or None; `known` makes a value of an object."""
    if isinstance(value, Items):
        return value.items
    if isinstance(value, Entries) and not value.open:
        return tuple(Known(key) for key, _ in value.pairs)
    if isinstance(value, Known):
        if isinstance(value.value, nn.ModuleDict):
            return tuple(Known(key) for key in value.value)
        if isinstance(value.value, (nn.ModuleList, nn.Sequential, list, tuple, range)):
            return tuple(known(item) for item in value.value)
    return None


def unpacked(value: Value, found: Sequence[Value] | None, count: int, starred: int | None) -> list[Value]:
    """Return what `count` variables are given, of which the one at `starred` takes the rest."""
    if isinstance(value, Shape):
        sizes = [single(("size", value.of, k)) for k in range(count)]
        return list(sizes) if starred is None else [free(sure=True)] * count
    if is_zero(value):
        return [ZERO] * count
    if (
        found is None
        or (starred is None and len(found) != count)
        or (starred is not None and len(found) < count - 1)
    ):
        return [free() for _ in range(count)]
    if starred is None:
        return list(found)
    after = count - starred - 1
    return [
        *found[:starred],
        Items(tuple(found[starred : len(found) - after]), list),
        *found[len(found) - after :],
    ]


def list_method(owner: Value, name: str, args: Sequence[Value]) -> tuple[Value, Value]:
    """Return the list after a method has changed it, and what the method returns."""
    if not isinstance(owner, Items):  # of unknown length: a list of zeros stays one
        return (ZERO if is_zero(owner) and args and is_zero(args[0]) else free(sure=True)), NONE
    items, result = owner.items, NONE
    if name == "append" and args:
        return Items((*items, args[0]), owner.kind), NONE
    if name == "extend" and args and isinstance(args[0], Items):
        return Items((*items, *args[0].items), owner.kind), NONE
    if name == "pop" and items and not args:
        *rest, result = items
        return Items(tuple(rest), owner.kind), result
    if name == "pop" and items and tuple(args) == (Known(0),):
        result, *rest = items
        return Items(tuple(rest), owner.kind), result
    return free(sure=True), free()


def dict_method(owner: Entries, name: str, args: Sequence[Value]) -> tuple[Entries, Value]:
    """Return the dictionary after a method has changed it, and what the method returns."""
    if name in ("get", "pop") and args and isinstance(args[0], Known):
        found, key = owner.get(args[0].value), args[0].value
        absent = free() if owner.open else args[1] if len(args) > 1 else NONE
        left = Entries(tuple(pair for pair in owner.pairs if pair[0] != key), owner.open)
        return (left if name == "pop" else owner), (absent if found is None else found)
    if name == "copy":
        return owner, owner
    if name == "update":
        more = args[0] if args else Entries(open=True)
        pairs = more.pairs if isinstance(more, Entries) else ()
        unknown = not isinstance(more, Entries) or more.open
        return Entries((*owner.pairs, *pairs), owner.open or unknown), NONE
    if name in ("items", "values", "keys") and not owner.open:
        pick: dict[str, Callable[[Any, Value], Value]] = {
            "items": lambda key, value: Items((Known(key), value)),
            "values": lambda key, value: value,
            "keys": lambda key, value: Known(key),
        }
        return owner, Items(tuple(pick[name](key, value) for key, value in owner.pairs), list)
    return owner, free()


def sort_of(value: Value) -> Any:
    """Return of a value what may decide which way the code goes."""
    if isinstance(value, Known):
        held = value.value
        plain = isinstance(held, (bool, int, float, str, type(None)))
        return "known", type(held).__name__, held if plain else id(held)
    if isinstance(value, Items):
        return "items", value.kind.__name__, tuple(sort_of(item) for item in value.items)
    if isinstance(value, Entries):
        return "entries", value.open, tuple((str(key), sort_of(item)) for key, item in value.pairs)
    if isinstance(value, Shape):
        return ("shape",)
    kinds = sorted({atom[0] for atoms, _ in value.terms for atom in atoms})
    return "sum", value.sure, len(value.terms), tuple(kinds)


def is_fixed(value: Value) -> bool:
    """Tell whether nothing in a value depends on a number."""
    if isinstance(value, Items):
        return bool(value.items) and all(is_fixed(item) for item in value.items)
    return (isinstance(value, Sum) and not value.terms) or value == NONE
