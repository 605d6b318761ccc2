"""Expressions: what is known of their values."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pruning.groups.reading import leaves
from pruning.groups.reading.binding import bind
from pruning.groups.reading.containers import DICT_METHODS, LIST_METHODS, dict_method, list_method
from pruning.groups.reading.frames import DEPTH, Env, Frame, Local, Raised
from pruning.groups.reading.operators import binary, compare, truth, unary
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
    join,
    the_atom,
)

if TYPE_CHECKING:
    from pruning.groups.reading.interpreter import Reader


def evaluate(reader: Reader, node: ast.expr, env: Env, frame: Frame) -> Value:
    """Return what is known of the value of an expression."""
    match node:
        case ast.Constant(value=value):
            return Known(value)
        case ast.Name(id=name):
            return _name(reader, name, env, frame)
        case ast.Attribute(value=owner, attr=attr):
            return attribute_of(reader, evaluate(reader, owner, env, frame), attr)
        case ast.Call():
            return _call_of(reader, node, env, frame)
        case ast.BinOp(left=left, op=op, right=right):
            return binary(op, evaluate(reader, left, env, frame), evaluate(reader, right, env, frame))
        case ast.UnaryOp(op=op, operand=operand):
            return unary(op, evaluate(reader, operand, env, frame))
        case ast.BoolOp(op=op, values=values):
            return _bool(reader, op, values, env, frame)
        case ast.Compare():
            if len(node.ops) != 1:
                return free(sure=True)
            left = evaluate(reader, node.left, env, frame)
            return compare(node.ops[0], left, evaluate(reader, node.comparators[0], env, frame))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            decided = truth(evaluate(reader, test, env, frame))
            if decided is not None:
                return evaluate(reader, body if decided else orelse, env, frame)
            absent, _ = none_test(test, env)
            return join(evaluate(reader, body, env, frame), evaluate(reader, orelse, env, frame), absent)
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            kind = tuple if isinstance(node, ast.Tuple) else list
            return _items(reader, elts, kind, env, frame)
        case ast.Dict(keys=keys, values=values):
            return _dict(reader, keys, values, env, frame)
        case ast.Subscript(value=owner, slice=index):
            return _item(reader, evaluate(reader, owner, env, frame), _index(reader, index, env, frame))
        case ast.Slice():
            return _index(reader, node, env, frame)
        case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
            return _comprehension(reader, node.elt, node.generators, env, frame)
        case ast.NamedExpr(target=target, value=value):
            found = evaluate(reader, value, env, frame)
            reader.assign(target, found, env, frame)
            return found
        case ast.Lambda():
            return local_function(reader, node, env, frame)
        case ast.Starred(value=value):
            return evaluate(reader, value, env, frame)
        case ast.JoinedStr():
            return free(sure=True)
        case _:
            return free()


def _name(reader: Reader, name: str, env: Env, frame: Frame) -> Value:
    if name in env:
        return env[name]
    if name in frame.globals:
        return reader.known(frame.globals[name])
    builtins: Any = frame.globals.get("__builtins__", {})
    builtins = builtins if isinstance(builtins, dict) else vars(builtins)
    return Known(builtins[name]) if name in builtins else free()


def attribute_of(reader: Reader, owner: Value, name: str) -> Value:
    """Return an attribute of a value, and tell the watcher of one of a module."""
    if isinstance(owner, Sum):
        if name == "shape":
            return Shape(owner)
        if name in ("data", "T", "mT", "real", "imag") and not owner.terms:
            return ZERO
        return Known(torch.float32) if name == "dtype" else free(sure=True)
    if isinstance(owner, Items) and owner.kind not in (tuple, list):
        return free()
    if not isinstance(owner, Known):
        return free()
    held = owner.value
    if (id(held), name) in reader.written:
        return reader.written[id(held), name]
    try:
        value = getattr(held, name)
    except Exception as error:
        if isinstance(held, nn.Module) and isinstance(error, AttributeError):
            raise Raised from error
        return free()
    if isinstance(held, nn.Module) and held is not reader.owner and reader.watcher is not None:
        reader.watcher.read(held, name, value)
    return reader.known(value)


def _call_of(reader: Reader, node: ast.Call, env: Env, frame: Frame) -> Value:
    args: list[Value] = []
    kwargs: dict[str, Value] = {}
    more = False
    for part in node.args:
        if isinstance(part, ast.Starred):
            found = reader.list_of(evaluate(reader, part.value, env, frame))
            args += found or ()
            more = more or found is None
        else:
            args.append(evaluate(reader, part, env, frame))
    for keyword in node.keywords:
        value = evaluate(reader, keyword.value, env, frame)
        if keyword.arg is not None:
            kwargs[keyword.arg] = value
        elif isinstance(value, Entries):
            kwargs |= {key: entry for key, entry in value.pairs if isinstance(key, str)}
            more = more or value.open
        else:
            more = more or not (isinstance(value, Known) and value.value == {})
    if isinstance(node.func, ast.Attribute):
        owner = evaluate(reader, node.func.value, env, frame)
        if not isinstance(owner, Known) or isinstance(owner.value, (dict, str)):
            return _method(reader, owner, node.func, args, kwargs, env, frame)
        if owner.value is torch and node.func.attr == "is_grad_enabled":
            return Known(True)
        return reader.call(attribute_of(reader, owner, node.func.attr), tuple(args), kwargs, more)
    if isinstance(node.func, ast.Name) and node.func.id == "super":
        return _super(reader, env, frame)
    return reader.call(evaluate(reader, node.func, env, frame), tuple(args), kwargs, more)


def _super(reader: Reader, env: Env, frame: Frame) -> Value:
    cls, held = frame.globals.get("__class__"), env.get("self")
    if isinstance(cls, type) and isinstance(held, Known) and isinstance(held.value, cls):
        return Known(super(cls, held.value))
    return free()


def _method(
    reader: Reader,
    owner: Value,
    func: ast.Attribute,
    args: list[Value],
    kwargs: dict[str, Value],
    env: Env,
    frame: Frame,
) -> Value:
    name = func.attr
    variable = func.value.id if isinstance(func.value, ast.Name) else None
    if (isinstance(owner, (Items, Sum)) and name in ("append", "extend", "insert")) or isinstance(
        owner, Items
    ):
        held, result = list_method(owner, name, args) if name in LIST_METHODS else (owner, free())
        if variable is not None:
            env[variable] = held
        return result
    if isinstance(owner, Sum) and name in DICT_METHODS:
        return free()
    if isinstance(owner, Shape):
        return free(sure=True)
    if isinstance(owner, Sum):
        result = leaves.call(name, (owner, *args), kwargs)
        if name.endswith("_") and not name.endswith("__") and variable is not None:
            env[variable] = result
        return result
    entries = owner
    if isinstance(owner, Known) and isinstance(owner.value, dict):
        entries = Entries(tuple((key, reader.known(value)) for key, value in owner.value.items()))
    if isinstance(entries, Entries):
        held, result = dict_method(entries, name, args)
        if variable is not None and isinstance(owner, Entries):
            env[variable] = held
        return result
    if isinstance(owner, Known) and isinstance(owner.value, str) and all(isinstance(a, Known) for a in args):
        try:
            return Known(getattr(owner.value, name)(*(a.value for a in args)))  # type: ignore[union-attr]
        except Exception:
            return free()
    return free()


def _bool(reader: Reader, op: ast.boolop, values: Sequence[ast.expr], env: Env, frame: Frame) -> Value:
    """Return the value of ``and`` and ``or``; one that decides ends it, however unknown those before it are."""
    stop = isinstance(op, ast.Or)
    undecided: list[Value] = []
    for node in values:
        value = evaluate(reader, node, env, frame)
        decided = truth(value)
        if decided is None:
            undecided.append(value)
        elif decided is stop:
            if not undecided:
                return value
            if not stop:
                return Known(False)  # some operand is false, whichever
            return free(sure=True)
        last = value
    if not undecided:
        return last
    return undecided[0] if len(values) == 1 else free()


def _items(reader: Reader, elts: Sequence[ast.expr], kind: type, env: Env, frame: Frame) -> Value:
    items: list[Value] = []
    for part in elts:
        value = evaluate(reader, part, env, frame)
        if isinstance(part, ast.Starred):
            found = reader.list_of(value)
            if found is None:
                return free(sure=True)
            items += found
        else:
            items.append(value)
    return Items(tuple(items), kind)


def _dict(
    reader: Reader, keys: Sequence[ast.expr | None], values: Sequence[ast.expr], env: Env, frame: Frame
) -> Value:
    pairs: list[tuple[Any, Value]] = []
    more = False
    for key_node, value_node in zip(keys, values, strict=True):
        value = evaluate(reader, value_node, env, frame)
        key = evaluate(reader, key_node, env, frame) if key_node is not None else None
        if isinstance(key, Known) and hashable(key.value):
            pairs.append((key.value, value))
        elif key is None and isinstance(value, Entries):
            pairs += value.pairs
            more = more or value.open
        else:
            more = True
    return Entries(tuple(pairs), more)


def _index(reader: Reader, node: ast.expr, env: Env, frame: Frame) -> Value:
    if isinstance(node, ast.Slice):
        parts = (node.lower, node.upper, node.step)
        return Items(tuple(NONE if p is None else evaluate(reader, p, env, frame) for p in parts), slice)
    if isinstance(node, ast.Tuple):
        return Items(tuple(_index(reader, part, env, frame) for part in node.elts))
    return evaluate(reader, node, env, frame)


def _item(reader: Reader, owner: Value, index: Value) -> Value:
    if isinstance(owner, Entries) and isinstance(index, Known):
        found = owner.get(index.value) if hashable(index.value) else None
        return found if found is not None else free()
    if isinstance(owner, Known) and isinstance(index, Known):
        try:
            return reader.known(owner.value[index.value])
        except Exception:
            return free()
    found = reader.list_of(owner)
    if found is None:
        return leaves.item(owner, index)
    if isinstance(index, Known) and isinstance(index.value, int) and -len(found) <= index.value < len(found):
        return found[index.value]
    if isinstance(index, Items) and index.kind is slice and all(isinstance(b, Known) for b in index.items):
        bounds = [b.value for b in index.items]  # type: ignore[union-attr]
        return Items(tuple(found[slice(*bounds)]), list if not isinstance(owner, Items) else owner.kind)
    if reader.watcher is not None and isinstance(owner, Known):
        for item in found:  # one of them, which is not known: what is read of it is read of each
            if isinstance(item, Known) and isinstance(item.value, nn.Module):
                reader.watcher.read(item.value, "[?]", item.value)
    return free()


def _comprehension(
    reader: Reader, element: ast.expr, generators: Sequence[ast.comprehension], env: Env, frame: Frame
) -> Value:
    first, *others = generators
    found = reader.list_of(evaluate(reader, first.iter, env, frame))
    inner = dict(env)
    if found is None or others or first.ifs:
        for generator in generators:
            reader.assign(generator.target, free(sure=True), inner, frame)
        evaluate(reader, element, inner, frame)
        return free(sure=True)
    items = []
    for value in found:
        reader.assign(first.target, value, inner, frame)
        items.append(evaluate(reader, element, inner, frame))
    return Items(tuple(items), list)


def local_function(reader: Reader, node: Any, env: Env, frame: Frame) -> Known:
    """Return a function that the code defines."""

    def call(args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        if reader.depth > DEPTH:
            return free()
        inner = {**env, **bind(node.args, args, kwargs, {}, True)}
        if isinstance(node, ast.Lambda):
            return evaluate(reader, node.body, inner, frame)
        return reader.body(node.body, inner, Frame(frame.globals))

    return Known(Local(node, frame, env, call))


def none_test(test: ast.expr, env: Env) -> tuple[str | None, str | None]:
    """Return, for ``x is not None`` (perhaps ``and`` more), the argument that `x` is, and the variable's name."""
    match test:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            atom = the_atom(env.get(name, NONE))
            if atom is not None and atom[0] == "arg":
                return atom[1], name
    return None, None


def hashable(value: Any) -> bool:
    """Tell whether a value may be the key of an entry."""
    return isinstance(value, (str, int, float, bool, type(None)))
