"""Operators on values: those of numbers and constants are computed, those of tensors are algebra."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pruning.groups.reading import leaves
from pruning.groups.reading.values import NONE, Entries, Items, Known, Shape, Sum, Value, as_sum, free, single

OPERATORS: Mapping[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@",
}  # fmt: skip
NUMBERS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b,
}
COMPARES: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
}
PLAIN = (bool, int, float, str, type(None), tuple, list, torch.dtype)


def truth(value: Value) -> bool | None:
    """Return whether a value counts as true, or None where that is not known."""
    if isinstance(value, Known):
        try:
            return bool(value.value)
        except Exception:  # the object's own code decides, and may not want to
            return None
    if isinstance(value, Items):
        return bool(value.items)
    if isinstance(value, Entries):
        return True if value.pairs else None if value.open else False
    return None


def binary(op: ast.operator, left: Value, right: Value) -> Value:
    """Return ``left op right``."""
    if isinstance(left, Known) and isinstance(right, Known) and type(op) in NUMBERS:
        try:
            return Known(NUMBERS[type(op)](left.value, right.value))
        except Exception:  # whatever these objects raise, the result is not known
            return free()
    if isinstance(op, ast.Add) and isinstance(left, Items) and isinstance(right, Items):
        return Items((*left.items, *right.items), left.kind)
    if isinstance(op, ast.Mult) and isinstance(left, Items) and isinstance(right, Known):
        return Items(left.items * right.value, left.kind) if isinstance(right.value, int) else free()
    operator = OPERATORS.get(type(op))
    if operator is not None:
        return leaves.arithmetic(operator, left, right)
    one, other = as_sum(left), as_sum(right)
    if one is None or other is None:
        return free(sure=True)
    return single(("computed", type(op).__name__, one, other))  # the same wherever it is written


def unary(op: ast.unaryop, value: Value) -> Value:
    """Return ``op value``."""
    if isinstance(op, ast.Not):
        decided = truth(value)
        return free(sure=True) if decided is None else Known(not decided)
    if isinstance(op, ast.USub) and as_sum(value) is not None:
        return Known(-value.value) if isinstance(value, Known) else leaves.arithmetic("*", Known(-1), value)
    return free(sure=True)


def compare(op: ast.cmpop, left: Value, right: Value) -> Value:
    """Return ``left op right`` as a known truth, or something unknown."""
    if isinstance(op, (ast.Is, ast.IsNot)) and NONE in (left, right):
        other = right if left == NONE else left
        sure = isinstance(other, (Items, Entries, Shape)) or (isinstance(other, Sum) and other.sure)
        known = sure or isinstance(other, Known)
        return Known((other == NONE) is isinstance(op, ast.Is)) if known else free(sure=True)
    if isinstance(op, (ast.In, ast.NotIn)) and isinstance(right, Entries) and isinstance(left, Known):
        found = right.get(left.value) is not None
        return Known(found is isinstance(op, ast.In)) if found or not right.open else free(sure=True)
    if type(op) in COMPARES and _plain(left) and (_plain(right) or isinstance(right, Known)):
        try:
            return Known(bool(COMPARES[type(op)](_python(left), _python(right))))
        except Exception:  # not comparable: the way of the code is not known
            return free(sure=True)
    return free(sure=True)


def instance(value: Value, kinds: Value) -> Value:
    """Return ``isinstance(value, kinds)``."""
    held = kinds.items if isinstance(kinds, Items) else (kinds,)
    wanted = [kind.value for kind in held if isinstance(kind, Known)]
    wanted = [kind for one in wanted for kind in (one if isinstance(one, tuple) else (one,))]
    if len(wanted) < len(held) or not all(isinstance(kind, type) for kind in wanted):
        return free()
    if isinstance(value, Known):
        return Known(isinstance(value.value, tuple(wanted)))
    if isinstance(value, Items):
        return Known(issubclass(value.kind, tuple(wanted)))
    if isinstance(value, Sum) and value.sure and not value.terms:
        return Known(any(issubclass(Tensor, kind) for kind in wanted))
    return free()


def _plain(value: Value) -> bool:
    if isinstance(value, Items) and value.kind in (tuple, list):
        return all(_plain(item) for item in value.items)
    return isinstance(value, Known) and isinstance(value.value, PLAIN)


def _python(value: Value) -> Any:
    if isinstance(value, Items):
        return value.kind(_python(item) for item in value.items)
    return value.value  # type: ignore[union-attr]
