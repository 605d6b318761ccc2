"""Which entry of a stock config counts the blocks of a list, where a block may be deleted without a trace.

Several lists may share one entry, if the forward pass goes through them side by side: then what may be deleted is a
block of each of them, at the same place.

The constructor must make the list from that entry alone and build all blocks alike, and the forward pass must go
through the list without looking at positions: neither an index, nor a counter, nor a second list beside it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pruning.groups.reading.source import class_tree

COUNTERS = ("pop", "append", "insert", "next", "get")
"""Calls that make a turn of a loop depend on the turns before it."""


def config_field(model: nn.Module, name: str, built_alike: bool) -> str | None:
    """Return the config entry that counts the list ``model.name``, or None if blocks cannot be deleted from it."""
    if not built_alike or "." in name:
        return None
    field = _field(type(model), name)
    config = getattr(model, "config", {})
    return field if field is not None and config.get(field) == len(getattr(model, name)) else None


@functools.cache
def _field(model: type[nn.Module], name: str) -> str | None:
    trees = [tree for cls in model.__mro__ if "forward" in vars(cls) and (tree := _own(cls)) is not None]
    found = {field for tree in trees for field in _range_of(tree, name)}
    if len(found) != 1:
        return None
    field = found.pop()
    if field is None or sum(_mentions(tree, field) for tree in trees) != 1:
        return None
    return field if all(_in_order(tree, name) for tree in trees) else None


@dataclass(frozen=True)
class SharedCount:
    """Lists that the forward pass goes through side by side, and that one config entry counts.

    Attributes:
        field: The entry.
        lists: Names of the lists.
        first_differs: Whether the forward pass does something else at the first place.
    """

    field: str
    lists: tuple[str, ...]
    first_differs: bool


@functools.cache
def shared_count(model: type[nn.Module]) -> SharedCount | None:
    """Return the lists of a class that share one count; None if it has none."""
    trees = [tree for cls in model.__mro__ if "forward" in vars(cls) and (tree := _own(cls)) is not None]
    for loop in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.For)):
        index, over = _indexed(loop)
        lists = _zipped(over)
        found = {field for name in lists for tree in trees for field in _range_of(tree, name)}
        field = next(iter(found)) if len(found) == 1 else None
        if field is None or sum(_mentions(tree, field) for tree in trees) != len(lists):
            continue
        uses = [
            node
            for part in loop.body
            for node in ast.walk(part)
            if isinstance(node, ast.Name) and node.id == index
        ]
        firsts = sum(_asks_for_first(node, index) for part in loop.body for node in ast.walk(part))
        if len(uses) == firsts and not _counts(loop.body) and _nowhere_else(trees, lists, over):
            return SharedCount(field, lists, bool(firsts))
    return None


def _indexed(loop: ast.For) -> tuple[str | None, ast.expr]:
    """Return the name of a loop's index and what it goes through."""
    match loop:
        case ast.For(
            target=ast.Tuple(elts=[ast.Name(id=index), _]),
            iter=ast.Call(func=ast.Name(id="enumerate"), args=[over]),
        ):
            return index, over
    return None, loop.iter


def _zipped(over: ast.expr) -> tuple[str, ...]:
    match over:
        case ast.Call(func=ast.Name(id="zip"), args=args):
            names = [arg.attr for arg in args if isinstance(arg, ast.Attribute) and _is_list(arg, arg.attr)]
            return tuple(names) if len(names) == len(args) > 1 else ()
    return ()


def _asks_for_first(node: ast.AST, index: str | None) -> bool:
    match node:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Eq()], comparators=[ast.Constant(value=0)]):
            return name == index
    return False


def _nowhere_else(trees: list[ast.ClassDef], lists: tuple[str, ...], over: ast.expr) -> bool:
    """Tell whether lists are made, and gone through by `over`, and that is all."""
    fine = {id(node) for node in ast.walk(over)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Assign):
            fine |= {id(target) for target in node.targets}
    return all(
        id(node) in fine
        for tree in trees
        for node in ast.walk(tree)
        if any(_is_list(node, name) for name in lists)
    )


def _own(cls: type) -> ast.ClassDef | None:
    return None if cls is nn.Module or not issubclass(cls, nn.Module) else class_tree(cls)


def _range_of(tree: ast.ClassDef, name: str) -> Iterator[str | None]:
    """Yield what counts each ``self.name = nn.ModuleList([... for _ in range(field)])``, None for other lists."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not any(_is_list(target, name) for target in node.targets):
            continue
        match node.value:
            case ast.Call(
                args=[
                    ast.ListComp(
                        elt=element,
                        generators=[
                            ast.comprehension(
                                target=ast.Name(id=index),
                                iter=ast.Call(func=ast.Name(id="range"), args=[count]),
                                ifs=[],
                            )
                        ],
                    )
                ]
            ):
                free = all(
                    not (isinstance(part, ast.Name) and part.id == index) for part in ast.walk(element)
                )
                yield _entry(count) if free else None
            case _:
                yield None


def _entry(count: ast.expr) -> str | None:
    match count:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr="config"), attr=name):
            return name
    return None


def _is_list(node: ast.AST, name: str) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=attr):
            return attr == name
    return False


def _mentions(tree: ast.ClassDef, field: str) -> int:
    return sum(
        (isinstance(node, ast.Name) and node.id == field)
        or (isinstance(node, ast.Attribute) and node.attr == field)
        for node in ast.walk(tree)
    )


def _in_order(tree: ast.ClassDef, name: str) -> bool:
    """Tell whether every use of the list is a loop over its blocks that does not look at positions."""
    fine: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and (over := _looped(node, name)) is not None and not _counts(node.body):
            fine.add(id(over))
        if isinstance(node, ast.Assign):
            fine |= {id(target) for target in node.targets if _is_list(target, name)}
        match node:  # read of the first block, which then is no group
            case ast.Attribute(value=ast.Subscript(value=held, slice=ast.Constant(value=0))) if _is_list(
                held, name
            ):
                fine.add(id(held))
    return all(id(node) in fine for node in ast.walk(tree) if _is_list(node, name))


def _looped(loop: ast.For, name: str) -> ast.expr | None:
    """Return the mention of the list that `loop` goes through, unless the loop's index is used."""
    match loop.iter:
        case ast.Attribute() if _is_list(loop.iter, name):
            return loop.iter
        case ast.Call(func=ast.Name(id="enumerate"), args=[over]) if _is_list(over, name):
            if isinstance(loop.target, ast.Tuple) and isinstance(loop.target.elts[0], ast.Name):
                index = loop.target.elts[0].id
                used = any(
                    isinstance(n, ast.Name) and n.id == index for part in loop.body for n in ast.walk(part)
                )
                return None if used else over
    return None


def _counts(body: list[ast.stmt]) -> bool:
    for node in (node for part in body for node in ast.walk(part)):
        if isinstance(node, ast.AugAssign) and isinstance(node.value, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in COUNTERS:
                return True
    return False
