"""What the reader knows of a value: a constant, a list, or a tensor as a polynomial of the call's arguments.

A tensor is a sum of products of atoms. An atom is an argument of the call, the concatenation of such sums, or free:
something of which only is known that it is the same wherever it appears. Products are pointwise, so that
``a * x + (1 - a) * x`` is found to be ``x`` whatever ``a`` is. The empty sum is zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Atom: TypeAlias = tuple[Any, ...]
_COUNTER = itertools.count()


@dataclass(frozen=True)
class Known:
    """A Python object: a constant, a module, a function, a class."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Known):
            return False
        plain = (bool, int, float, str, type(None))
        if isinstance(self.value, plain) and isinstance(other.value, plain):
            return type(self.value) is type(other.value) and self.value == other.value
        return self.value is other.value

    def __hash__(self) -> int:
        return hash((type(self.value).__name__, id(type(self.value))))


@dataclass(frozen=True)
class Items:
    """A tuple or list (or the output class of a model) of values."""

    items: tuple[Value, ...]
    kind: type = tuple


@dataclass(frozen=True)
class Entries:
    """A dictionary with known keys; `open` if there may be more."""

    pairs: tuple[tuple[Any, Value], ...] = ()
    open: bool = False

    def get(self, key: Any) -> Value | None:
        """Return the value at `key`, or None."""
        return next((value for name, value in reversed(self.pairs) if name == key), None)


@dataclass(frozen=True)
class Sum:
    """A tensor: coefficients by product of atoms (sorted); zero without any. `sure`: it is not None."""

    terms: frozenset[tuple[tuple[Atom, ...], float]]
    sure: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Shape:
    """The sizes of a tensor."""

    of: Sum


Value: TypeAlias = Known | Items | Entries | Sum | Shape

ZERO = Sum(frozenset())
NONE = Known(None)


def free(sure: bool = False) -> Sum:
    """Return something new of which nothing is known."""
    return single(("free", next(_COUNTER)), sure)


def single(atom: Atom, sure: bool = True) -> Sum:
    """Return one atom as a sum."""
    return Sum(frozenset({((atom,), 1.0)}), sure)


def argument(name: str) -> Sum:
    """Return an argument of the call; it may be None."""
    return single(("arg", name), sure=False)


def constant(value: float) -> Sum:
    """Return a number as a sum."""
    return Sum(frozenset({((), float(value))})) if value else ZERO


def as_sum(value: Value) -> Sum | None:
    """Return a number or tensor as a sum, or None for all else."""
    if isinstance(value, Known) and isinstance(value.value, (bool, int, float)):
        return constant(value.value)
    return value if isinstance(value, Sum) else None


def is_zero(value: Value | None) -> bool:
    """Tell whether a tensor is surely zero."""
    return isinstance(value, Sum) and not value.terms


def _collect(terms: Iterable[tuple[tuple[Atom, ...], float]]) -> Sum:
    total: dict[tuple[Atom, ...], float] = {}
    for atoms, factor in terms:
        total[atoms] = total.get(atoms, 0.0) + factor
    return Sum(frozenset((atoms, factor) for atoms, factor in total.items() if abs(factor) > 1e-12))


def add(left: Sum, right: Sum, factor: float = 1.0) -> Sum:
    """Return ``left + factor * right``."""
    return _collect([*left.terms, *((atoms, factor * value) for atoms, value in right.terms)])


def multiply(left: Sum, right: Sum) -> Sum:
    """Return the pointwise product."""
    if len(left.terms) * len(right.terms) > 64:
        return free(sure=True)
    return _collect((tuple(sorted((*a, *b), key=repr)), x * y) for a, x in left.terms for b, y in right.terms)


def the_atom(value: Value) -> Atom | None:
    """Return the atom that `value` is, or None if it is anything else."""
    if isinstance(value, Sum) and len(value.terms) == 1:
        ((atoms, factor),) = value.terms
        if len(atoms) == 1 and factor == 1.0:
            return atoms[0]
    return None


def viewed(value: Sum, operation: Any, sizes: Any = None) -> Sum:
    """Return a tensor after a change of its shape.

    Args:
        value: The tensor.
        operation: ``"r"``, which keeps the order of the numbers, or ``("permute", axes)`` or ``("swap", axes)``.
        sizes: For ``"r"``: the new sizes, if they are known; one after a permutation that goes to the sizes behind it
            takes back what was done in between.
    """
    if not value.terms:
        return ZERO
    atom = the_atom(value)
    if atom is None:
        return free(sure=True)
    base, done = (atom[1], atom[2]) if atom[0] == "view" else (atom, ())
    if operation == "r":
        done = done[:-1] if done and done[-1][0] == "r" else done
        if not (done and sizes is not None and done[-1][1] == sizes):
            done = (*done, ("r", sizes))
    elif done and _undoes(operation, done[-1][0]):
        done = done[:-1]
    else:
        done = (*done, (operation, _permuted(done[-1][1], operation) if done else None))
    return single(("view", base, done) if done else base)


def _undoes(operation: Any, before: Any) -> bool:
    if operation[0] != before[0] or before == "r":
        return False
    if operation[0] == "swap":
        return operation == before
    order, first = operation[1], before[1]
    return len(order) == len(first) and all(axis >= 0 and first[axis] == k for k, axis in enumerate(order))


def _permuted(sizes: Any, operation: Any) -> Any:
    if sizes is None or any(axis < 0 or axis >= len(sizes) for axis in operation[1]):
        return None
    if operation[0] == "permute":
        return tuple(sizes[axis] for axis in operation[1])
    one, other = operation[1]
    swapped = {one: other, other: one}
    return tuple(sizes[swapped.get(axis, axis)] for axis in range(len(sizes)))


def straight(value: Value) -> Value:
    """Return a tensor without views that keep the order of its numbers."""
    if isinstance(value, Items):
        return Items(tuple(straight(item) for item in value.items), value.kind)
    if not isinstance(value, Sum):
        return value
    return Sum(
        frozenset(
            (tuple(_straight(atom) for atom in atoms) if len(atoms) == 1 else atoms, factor)
            for atoms, factor in value.terms
        ),
        value.sure,
    )


def _straight(atom: Atom) -> Atom:
    return atom[1] if atom[0] == "view" and len(atom[2]) == 1 and atom[2][0][0] == "r" else atom


def without(value: Value, name: str) -> Value:
    """Return `value` with the argument `name` set to zero."""
    if not isinstance(value, Sum):
        return value
    gone = ("arg", name)
    return Sum(frozenset((atoms, factor) for atoms, factor in value.terms if gone not in atoms), value.sure)


def join(one: Value, other: Value, absent: str | None = None) -> Value:
    """Return what is known where a value is one of two.

    `absent` names an argument that is None in the second case: a sum in which it counts as zero then holds in both.
    """
    if one == other:
        return one if not isinstance(one, Sum) or one.sure else other if isinstance(other, Sum) else one
    if absent is not None and without(one, absent) == other:
        return one
    if isinstance(one, Items) and isinstance(other, Items):
        if one.kind is other.kind and len(one.items) == len(other.items):
            pairs = zip(one.items, other.items, strict=True)
            return Items(tuple(join(a, b, absent) for a, b in pairs), one.kind)
        every = (*one.items, *other.items)
        return ZERO if every and all(is_zero(item) for item in every) else free(sure=True)
    if any(
        is_zero(a) and isinstance(b, Items) and all(map(is_zero, b.items))
        for a, b in ((one, other), (other, one))
    ):
        return ZERO  # a list of zeros, however long
    plain, second = straight(one), straight(other)
    if plain == second:
        return plain
    sure = [isinstance(value, Items) or (isinstance(value, Sum) and value.sure) for value in (one, other)]
    return free(sure=all(sure))
