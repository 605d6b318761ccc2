"""Which variables a function starts with."""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Mapping, Sequence

from pruning.groups.reading.frames import Env
from pruning.groups.reading.values import Entries, Items, Known, Value, free


@functools.cache
def defaults_of(function: types.FunctionType) -> Mapping[str, Value]:
    """Return the defaults of a function's arguments."""
    parameters = inspect.signature(function).parameters
    return {
        name: Known(p.default) for name, p in parameters.items() if p.default is not inspect.Parameter.empty
    }


def bind(
    parameters: ast.arguments,
    args: Sequence[Value],
    kwargs: Mapping[str, Value],
    defaults: Mapping[str, Value],
    more: bool,
) -> Env:
    """Return the variables at the start of a call; what `more` might have given is unknown."""
    names = [p.arg for p in (*parameters.posonlyargs, *parameters.args)]
    env: Env = dict(zip(names, args, strict=False))
    rest = dict(kwargs)
    for name in (*names, *(p.arg for p in parameters.kwonlyargs)):
        if name in rest:
            env[name] = rest.pop(name)
        elif name not in env:
            env[name] = free() if more or name not in defaults else defaults[name]
    if parameters.vararg is not None:
        env[parameters.vararg.arg] = free(sure=True) if more else Items(tuple(args[len(names) :]))
    if parameters.kwarg is not None:
        env[parameters.kwarg.arg] = Entries(tuple(rest.items()), more)
    return env
