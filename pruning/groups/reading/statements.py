"""Statements: what they assign and return, and which way a branch or a loop goes."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pruning.groups.reading.containers import unpacked
from pruning.groups.reading.expressions import evaluate, hashable, local_function, none_test
from pruning.groups.reading.frames import Env, Frame, Raised, merge
from pruning.groups.reading.operators import binary, truth
from pruning.groups.reading.values import NONE, Entries, Known, Value, free

if TYPE_CHECKING:
    from pruning.groups.reading.interpreter import Reader


def execute(reader: Reader, body: Sequence[ast.stmt], env: Env, frame: Frame) -> Env | None:
    """Return the variables after statements; None if every way ends in them."""
    now: Env | None = env
    for statement in body:
        if now is None:
            return None
        try:
            now = _statement(reader, statement, now, frame)
        except Raised:
            return None
    return now


def _statement(reader: Reader, node: ast.stmt, env: Env, frame: Frame) -> Env | None:
    match node:
        case ast.Assign(targets=targets, value=value):
            found = evaluate(reader, value, env, frame)
            for target in targets:
                assign(reader, target, found, env, frame)
        case ast.AnnAssign(target=target, value=value) if value is not None:
            assign(reader, target, evaluate(reader, value, env, frame), env, frame)
        case ast.AugAssign(target=target, op=op, value=value):
            loaded = evaluate(reader, _as_load(target), env, frame)
            assign(reader, target, binary(op, loaded, evaluate(reader, value, env, frame)), env, frame)
        case ast.Expr(value=value):
            evaluate(reader, value, env, frame)
        case ast.Return(value=value):
            frame.returned.append(NONE if value is None else evaluate(reader, value, env, frame))
            return None
        case ast.Raise():
            return None
        case ast.If(test=test, body=body, orelse=orelse):
            return _if(reader, test, body, orelse, env, frame)
        case ast.For(target=target, iter=over, body=body):
            return _for(reader, target, over, body, env, frame)
        case ast.While(body=body):
            return merge(env, _once(reader, body, dict(env), frame))
        case ast.With(items=items, body=body):
            for item in items:
                found = evaluate(reader, item.context_expr, env, frame)
                if item.optional_vars is not None:
                    assign(reader, item.optional_vars, found, env, frame)
            return execute(reader, body, env, frame)
        case ast.Try(body=body, handlers=handlers, finalbody=final):
            before = dict(env)
            after = execute(reader, body, env, frame)
            for other in handlers:
                after = merge(after, execute(reader, other.body, dict(before), frame))
            return execute(reader, final, after, frame) if after is not None and final else after
        case ast.FunctionDef(name=name):
            env[name] = local_function(reader, node, env, frame)
        case ast.Continue():
            frame.skipped.append(env)
            return None
        case ast.Break():
            frame.broken.append(env)
            return None
        case ast.Delete(targets=targets):
            for target in targets:
                if isinstance(target, ast.Name):
                    env.pop(target.id, None)
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            for alias in names:
                env[alias.asname or alias.name.split(".")[0]] = free(sure=True)
        case _:
            pass
    return env


def _if(
    reader: Reader, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt], env: Env, frame: Frame
) -> Env | None:
    decided = truth(evaluate(reader, test, env, frame))
    if decided is not None:
        return execute(reader, body if decided else orelse, env, frame)
    if reader.zeros and _is_mask_test(test):
        return execute(reader, orelse, env, frame)  # a mask marks padding: what is computed there is not used
    absent, given = none_test(test, env)
    one, other = dict(env), dict(env)
    if given is not None:
        other[given] = NONE
    then, otherwise = execute(reader, body, one, frame), execute(reader, orelse, other, frame)
    if given is not None and otherwise is not None and otherwise.get(given) is NONE:
        otherwise[given] = env[given]
    return merge(then, otherwise, absent)


def _for(
    reader: Reader, target: ast.expr, over: ast.expr, body: list[ast.stmt], env: Env, frame: Frame
) -> Env | None:
    found = reader.list_of(evaluate(reader, over, env, frame))
    if found is None:
        assign(reader, target, free(sure=True), env, frame)
        before = dict(env)
        _once(reader, body, dict(env), frame)
        changed = _once(reader, body, {**env, **_assigned(body)}, frame)
        return merge(before, changed)
    outer, frame.skipped, frame.broken = (frame.skipped, frame.broken), [], []
    now: Env | None = env
    left: Env | None = None
    for value in found:
        if now is None:
            break
        assign(reader, target, value, now, frame)
        now = execute(reader, body, now, frame)
        for skipped in frame.skipped:
            now = merge(now, skipped)
        for broken in frame.broken:
            left = merge(left, broken)
        frame.skipped, frame.broken = [], []
    frame.skipped, frame.broken = outer
    return merge(now, left)


def _once(reader: Reader, body: list[ast.stmt], env: Env, frame: Frame) -> Env | None:
    outer, frame.skipped, frame.broken = (frame.skipped, frame.broken), [], []
    after = execute(reader, body, env, frame)
    for other in (*frame.skipped, *frame.broken):
        after = merge(after, other)
    frame.skipped, frame.broken = outer
    return after


def assign(reader: Reader, target: ast.expr, value: Value, env: Env, frame: Frame) -> None:
    """Give a value to a variable, to several, or to an entry."""
    match target:
        case ast.Name(id=name):
            env[name] = value
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            starred = next((k for k, part in enumerate(elts) if isinstance(part, ast.Starred)), None)
            parts = unpacked(value, reader.list_of(value), len(elts), starred)
            for part, found in zip(elts, parts, strict=True):
                assign(reader, part.value if isinstance(part, ast.Starred) else part, found, env, frame)
        case ast.Subscript(value=ast.Name(id=name), slice=index):
            held, key = env.get(name), evaluate(reader, index, env, frame)
            if isinstance(held, Entries) and isinstance(key, Known) and hashable(key.value):
                env[name] = Entries((*held.pairs, (key.value, value)), held.open)
            elif isinstance(held, Entries):
                env[name] = Entries(held.pairs, True)
            else:
                env[name] = free(sure=True)
        case ast.Attribute(value=owner, attr=attr):
            held = evaluate(reader, owner, env, frame)
            if isinstance(held, Known):
                reader.written[id(held.value), attr] = free()
        case _:
            pass


def _assigned(body: Sequence[ast.stmt]) -> Env:
    """Return every name that `body` assigns, as unknown: what it may be in a later turn of the loop."""
    names = {
        node.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return {name: free() for name in names}


def _is_mask_test(test: ast.expr) -> bool:
    match test:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return "mask" in name
    return False


def _as_load(target: ast.expr) -> ast.expr:
    match target:
        case ast.Name(id=name):
            return ast.Name(id=name, ctx=ast.Load())
        case ast.Attribute(value=value, attr=attr):
            return ast.Attribute(value=value, attr=attr, ctx=ast.Load())
        case ast.Subscript(value=value, slice=index):
            return ast.Subscript(value=value, slice=index, ctx=ast.Load())
    return target
