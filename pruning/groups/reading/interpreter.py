"""Run the source of a module's ``forward`` on what is known of its arguments, without a number.

Both ways of an undecided ``if`` are followed and joined; a loop over the modules of a list is unrolled, one over
something unknown runs once. Nothing of the model is executed except the reading of its attributes.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pruning.groups.reading import leaves, statements
from pruning.groups.reading.binding import bind, defaults_of
from pruning.groups.reading.containers import is_fixed, listed, sort_of
from pruning.groups.reading.expressions import attribute_of
from pruning.groups.reading.frames import DEPTH, Call, Env, Frame, Local, Raised, Watcher
from pruning.groups.reading.operators import instance
from pruning.groups.reading.source import loops, plain_function, tree_of
from pruning.groups.reading.values import (
    NONE,
    ZERO,
    Entries,
    Items,
    Known,
    Sum,
    Value,
    free,
    join,
    single,
    the_atom,
)
from pruning.groups.words import CONVOLUTIONS
from pruning.removal import BlockRemoval

COMPUTED = {
    len,
    int,
    float,
    str,
    bool,
    min,
    max,
    abs,
    round,
    range,
    isinstance,
    hasattr,
    type,
    callable,
    issubclass,
    sum,
}


class Reader:
    """Interprets the code of one module.

    Args:
        owner: The module; what is called inside it is followed only if all its parameters count as zero.
        zeros: All parameters of `owner` are zero, and the modules in it are followed. Otherwise their outputs are
            unknown, and `watcher` is told of them.
        watcher: Told what is done with modules.
        shortcut: Convolutions named as the shortcut of a block with fewer channels behind it count as handing on the
            first of their input's channels.
        signatures: Of modules by `id`; those that are alike are followed once where their output is zero.
        memo: Such outputs.
    """

    def __init__(
        self,
        owner: nn.Module,
        *,
        zeros: bool,
        watcher: Watcher | None = None,
        shortcut: bool = False,
        signatures: Mapping[int, int] | None = None,
        memo: dict[Any, Value] | None = None,
    ) -> None:
        self.owner, self.zeros, self.watcher, self.shortcut = owner, zeros, watcher, shortcut
        self.signatures = signatures or {}
        self.memo: dict[Any, Value] = {} if memo is None else memo
        self.depth = 0
        self.written: dict[tuple[int, str], Value] = {}
        self._shortcuts = {
            id(module)
            for path, module in owner.named_modules()
            if shortcut and "shortcut" in path.rpartition(".")[2]
        }
        self._parameters = {id(p) for p in owner.parameters()} if zeros else set()

    def run(self, arguments: Mapping[str, Value]) -> Value:
        """Return what the owner's ``forward`` returns; arguments that are not named take their defaults."""
        try:
            return self._function(type(self.owner).forward, (Known(self.owner),), dict(arguments), False)
        except Raised:
            return free()

    def _narrowing(self, module: nn.Module) -> int | None:
        """Return the output channels of a shortcut that is one convolution with fewer channels behind it."""
        if id(module) not in self._shortcuts or not isinstance(module, CONVOLUTIONS):
            return None
        return module.out_channels if set(module.kernel_size) == {1} else None

    # Calls

    def _module(
        self, module: nn.Module, args: tuple[Value, ...], kwargs: dict[str, Value], more: bool
    ) -> Value:
        if self.watcher is not None:
            self.watcher.called(Call(module, args, kwargs, more))
        if not self.zeros:
            return free(sure=True)
        removal = getattr(module, "removal", None)
        if isinstance(removal, BlockRemoval):
            return free(sure=True) if more else _identity(removal, args, kwargs)
        if self.shortcut and (channels := self._narrowing(module)) is not None:
            atom = the_atom(args[0]) if args else None
            known = atom is not None and atom[0] == "arg"
            return single(("first", atom[1], channels)) if known else free(sure=True)  # type: ignore[index]
        own = type(module).forward
        if own.__module__.startswith("torch.") and isinstance(module, nn.Sequential):
            value = args[0] if args else free()
            for child in module:
                value = self._module(child, (value,), {}, False)
            return value
        if own.__module__.startswith("torch."):
            return leaves.layer(module, args or tuple(kwargs.values()))
        if self.depth > DEPTH:
            return free(sure=True)
        key = self._key(module, args, kwargs, more)
        if key is not None and key in self.memo:
            return self.memo[key]
        value = self._function(own, (Known(module), *args), kwargs, more)
        if key is not None and is_fixed(value):
            self.memo[key] = value
        return value

    def _key(self, module: nn.Module, args: tuple[Value, ...], kwargs: dict[str, Value], more: bool) -> Any:
        """Return what decides on the output of a module that is zero whatever the numbers that it is given."""
        signature = self.signatures.get(id(module))
        if signature is None or self.shortcut:
            return None
        values = [*args, *kwargs.values()]
        same = tuple(values.index(value) for value in values)
        return signature, tuple(sort_of(value) for value in values), tuple(kwargs), same, more

    def _function(
        self, function: Callable[..., Any], args: tuple[Value, ...], kwargs: dict[str, Value], more: bool
    ) -> Value:
        plain = plain_function(function)
        tree = tree_of(plain) if plain is not None else None
        if plain is None or tree is None or not isinstance(tree, ast.FunctionDef) or loops(plain):
            return free()
        if self.depth > DEPTH:
            return free()
        names = dict(plain.__globals__)
        for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:
                continue
        frame = Frame(names)
        env = bind(tree.args, args, kwargs, defaults_of(plain), more)
        return self.body(tree.body, env, frame)

    def body(self, body: list[ast.stmt], env: Env, frame: Frame) -> Value:
        """Return what the body of a function returns."""
        self.depth += 1
        try:
            if statements.execute(self, body, env, frame) is not None:
                frame.returned.append(NONE)
        finally:
            self.depth -= 1
        if not frame.returned:
            raise Raised
        value = frame.returned[0]
        for other in frame.returned[1:]:
            value = join(value, other)
        return value

    def call(self, function: Value, args: tuple[Value, ...], kwargs: dict[str, Value], more: bool) -> Value:
        """Return what a call gives back; `more` says that it has further arguments, of which nothing is known."""
        target = function.value if isinstance(function, Known) else None
        if isinstance(target, nn.Module):
            return self._module(target, args, kwargs, more)
        if isinstance(target, Local):
            return target.call(args, kwargs)
        if isinstance(target, types.MethodType):
            if isinstance(target.__self__, nn.Module) and target.__func__ is type(target.__self__).forward:
                return self._module(target.__self__, args, kwargs, more)
            return self._function(target.__func__, (Known(target.__self__), *args), kwargs, more)
        if isinstance(target, type):
            return self._construct(target, args, kwargs)
        if target is None:
            return free()
        name, home = getattr(target, "__name__", ""), getattr(target, "__module__", None) or ""
        if home == "builtins" or target in COMPUTED:
            return self._builtin(name, target, args)
        if home.startswith("torch") or name in leaves.ATTENTION or not isinstance(target, types.FunctionType):
            own_call = inspect.getattr_static(type(target), "__call__", None)
            if isinstance(own_call, types.FunctionType) and not home.startswith("torch"):
                return self._function(own_call, (Known(target), *args), kwargs, more)  # a processor
            return leaves.call(name, args, kwargs)
        if not self.zeros and not any(_has_modules(value) for value in (*args, *kwargs.values())):
            return free()  # nothing to watch
        return self._function(target, args, kwargs, more)

    def _construct(self, target: type, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        if target in (
            tuple,
            list,
            int,
            float,
            str,
            bool,
            dict,
            zip,
            enumerate,
            range,
            reversed,
            set,
            type,
            super,
        ):
            return self._builtin(target.__name__, target, args, kwargs)
        if hasattr(target, "__dataclass_fields__"):
            return Items((*args, *kwargs.values()), target)
        return free(sure=True)

    def _builtin(
        self, name: str, target: Any, args: tuple[Value, ...], kwargs: Mapping[str, Value] | None = None
    ) -> Value:
        if name == "dict":
            return Entries(tuple((kwargs or {}).items()), open=bool(args))
        lists = [self.list_of(arg) for arg in args]
        if name in ("tuple", "list") and len(args) <= 1:
            kind = tuple if name == "tuple" else list
            if not args:
                return Items((), kind)
            if isinstance(args[0], Sum) and not args[0].terms:
                return ZERO
            return Items(lists[0], kind) if lists[0] is not None else free(sure=True)
        if name == "enumerate" and lists and lists[0] is not None:
            return Items(tuple(Items((Known(k), value)) for k, value in enumerate(lists[0])), list)
        if name == "zip" and lists and all(found is not None for found in lists):
            return Items(tuple(Items(row) for row in zip(*lists, strict=False)), list)  # type: ignore[arg-type]
        if name == "reversed" and lists and lists[0] is not None:
            return Items(tuple(reversed(lists[0])), list)
        if name == "len" and len(args) == 1 and isinstance(args[0], Items):
            return Known(len(args[0].items))
        if name == "isinstance" and len(args) == 2 and isinstance(args[1], (Known, Items)):
            return instance(*args)
        if name == "getattr" and len(args) >= 2 and isinstance(args[1], Known):
            if isinstance(args[0], Known) and not hasattr(args[0].value, args[1].value) and len(args) > 2:
                return args[2]
            return attribute_of(self, args[0], args[1].value)
        if name == "super":
            return free()
        if target in COMPUTED and all(isinstance(arg, Known) for arg in args):
            try:
                return Known(target(*(arg.value for arg in args)))  # type: ignore[union-attr]
            except Exception:
                return free()
        if name in ("int", "float") and len(args) == 1 and isinstance(args[0], Sum):
            return args[0]
        return free(sure=name not in ("next", "getattr"))

    # What the reading of statements and expressions asks for

    def assign(self, target: ast.expr, value: Value, env: Env, frame: Frame) -> None:
        """Give a value to a variable, to several, or to an entry."""
        statements.assign(self, target, value, env, frame)

    def list_of(self, value: Value) -> tuple[Value, ...] | None:
        """Return the items of a value, if they are known."""
        return listed(value, self.known)

    def known(self, value: Any) -> Value:
        """Return what is known of an object of the model: all, but of a tensor only whether it is zero."""
        if isinstance(value, Tensor):
            return ZERO if id(value) in self._parameters else free(sure=True)
        return Known(value)


def _identity(removal: BlockRemoval, args: tuple[Value, ...], kwargs: Mapping[str, Value]) -> Value:
    """Return what stands where a block was gives back."""
    if removal.channels is not None:
        return free(sure=True)
    parts: list[Value] = []
    for handed in removal.returns:
        given = [value for value in handed.given(args, kwargs) if value is not None and value != NONE]
        total: Value = given[0] if given else NONE
        for value in given[1:]:
            total = leaves.arithmetic("+", total, value)
        parts.append(total if handed.factor == 1.0 else leaves.arithmetic("*", total, Known(handed.factor)))
    return (
        parts[0]
        if removal.form == "tensor"
        else Items(tuple(parts), tuple if removal.form == "tuple" else list)
    )


def _has_modules(value: Value) -> bool:
    if isinstance(value, Items):
        return any(_has_modules(item) for item in value.items)
    return isinstance(value, Known) and (isinstance(value.value, nn.Module) or callable(value.value))
