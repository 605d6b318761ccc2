"""The source of functions as syntax trees, read once."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import tokenize
import types
from collections.abc import Callable
from typing import Any


def plain_function(function: Callable[..., Any]) -> types.FunctionType | None:
    """Return the Python function behind decorators that say what they wrap; None for built-in ones."""
    function = inspect.unwrap(function)
    return function if isinstance(function, types.FunctionType) else None


@functools.cache
def tree_of(function: types.FunctionType) -> ast.FunctionDef | ast.Lambda | None:
    """Return the definition of a function, or None where there is no source."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        tree = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


@functools.lru_cache(maxsize=16)
def _classes_in(file: str | None) -> dict[str, ast.ClassDef]:
    """Return the classes at the top of a file; `inspect` would parse it anew for each of them."""
    with tokenize.open(file or "") as text:
        tree = ast.parse(text.read())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@functools.cache
def class_tree(cls: type) -> ast.ClassDef | None:
    """Return the definition of a class, or None where there is no source."""
    try:
        found = _classes_in(inspect.getsourcefile(cls)).get(cls.__qualname__)
        if found is not None:
            return found
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return tree if isinstance(tree, ast.ClassDef) else None


@functools.cache
def loops(function: types.FunctionType) -> bool:
    """Tell whether a function is a generator."""
    return inspect.isgeneratorfunction(function)
