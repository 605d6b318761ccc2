"""What the code of a model does with the modules in it: how each is called, and what is read of it from outside."""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pruning.groups.reading.frames import Call
from pruning.groups.reading.interpreter import Reader
from pruning.groups.reading.structure import forward_names, has_own_forward, may_be_block
from pruning.groups.reading.values import Value, argument, free

PLAIN = (bool, int, float, str, type(None), torch.dtype)
CALLS = ("forward", "__call__", "training")


@dataclass
class Uses:
    """What one module's ``forward`` does with the modules in it, by path relative to that module."""

    calls: dict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    reads: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    """Names of the attributes that are read of a module, and what each is: ``module``, ``object`` or ``inner``."""


class _Watch:
    def __init__(self, owner: nn.Module) -> None:
        self.uses = Uses()
        self._paths = {id(module): path for path, module in owner.named_modules()}

    def called(self, call: Call) -> None:
        if (path := self._paths.get(id(call.module))) is not None:
            self.uses.calls[path].append(call)

    def read(self, module: nn.Module, name: str, value: Any) -> None:
        path = self._paths.get(id(module))
        if path and name not in CALLS and not isinstance(value, PLAIN) and not _container(module):
            self.uses.reads[path][name] = _kind(value)


def _container(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _kind(value: Any) -> str:
    """Return ``module``, ``object`` for one without weights, or ``inner`` for what only the block itself has."""
    if isinstance(value, nn.Module):
        return "module"
    return "inner" if isinstance(value, (torch.Tensor, types.MethodType, dict, list, tuple)) else "object"


def uses_of(owner: nn.Module) -> Uses:
    """Interpret one module's ``forward`` and return what it does with the modules in it."""
    watch = _Watch(owner)
    names = forward_names(owner)
    Reader(owner, zeros=False, watcher=watch).run({name: argument(name) for name in names})
    return watch.uses


@dataclass(frozen=True)
class Callers:
    """All calls and reads of the modules of a model, by path and by who does it.

    Attributes:
        calls: By path of a module, how it is called, and the path of the module whose code calls it.
        reads: By path of a module and of a reader, what is read; see `Uses.reads`.
    """

    calls: Mapping[str, list[tuple[str, Call]]]
    reads: Mapping[str, Mapping[str, Mapping[str, str]]]

    def of(self, path: str) -> list[Call]:
        """Return how a module is called."""
        return [call for _, call in self.calls.get(path, ())]


def callers_in(model: nn.Module, signatures: Mapping[str, int], cache: dict[Any, Any]) -> Callers:
    """Read the code of every module of a model that has code of its own."""
    calls: dict[str, list[tuple[str, Call]]] = defaultdict(list)
    reads: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    candidates = [path for path, module in model.named_modules() if path and may_be_block(module)]
    around = {parent for path in candidates for parent in enclosing(path.rpartition(".")[0])} | {""}
    for path, module in model.named_modules():
        if path not in around or not has_own_forward(module):
            continue
        key = ("uses", signatures[path])
        if key not in cache:
            cache[key] = uses_of(module)
        for inner, found in cache[key].calls.items():
            calls[_join(path, inner)] += [(path, call) for call in found]
        for inner, names in cache[key].reads.items():
            reads[_join(path, inner)][path] = names
    return Callers(calls, reads)


def _join(path: str, inner: str) -> str:
    return f"{path}.{inner}" if path else inner


def arguments_of(names: list[str], calls: list[Call]) -> dict[str, Value]:
    """Return the arguments with which a block runs: constants where all calls agree on one, else unknown."""
    found: dict[str, Value] = {}
    bound = [_bound(names, call) for call in calls]
    for name in names:
        given = [arguments.get(name) for arguments, _ in bound]
        if all(value is None for value in given) and not any(more for _, more in bound):
            continue  # the default holds
        first = given[0]
        same = first is not None and all(value == first for value in given)
        found[name] = first if same and _constant(first) else argument(name)  # type: ignore[assignment]
    return found


def _bound(names: list[str], call: Call) -> tuple[dict[str, Value], bool]:
    return {**dict(zip(names, call.args, strict=False)), **call.kwargs}, call.open


def _constant(value: Value | None) -> bool:
    held = getattr(value, "value", free)
    return isinstance(held, PLAIN)


def enclosing(path: str) -> Iterator[str]:
    """Yield the paths of what `path` lies in, from the inside, itself first and without the model."""
    while path:
        yield path
        path = path.rpartition(".")[0]
