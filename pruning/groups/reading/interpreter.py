"""Run the source of a module's ``forward`` on what is known of its arguments, without a number.

Both ways of an undecided ``if`` are followed and joined; a loop over the modules of a list is unrolled, one over
something unknown runs once. Nothing of the model is executed except the reading of its attributes.
"""

from __future__ import annotations

import ast
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.groups.reading import leaves
from pruning.groups.reading.containers import (
    DICT_METHODS,
    LIST_METHODS,
    dict_method,
    is_fixed,
    list_method,
    listed,
    sort_of,
    unpacked,
)
from pruning.groups.reading.frames import Call, Env, Frame, Local, Watcher, merge
from pruning.groups.reading.operators import binary, compare, instance, truth, unary
from pruning.groups.reading.source import loops, plain_function, tree_of
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
    single,
    the_atom,
)
from pruning.removal import BlockRemoval

DEPTH = 24
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


class Raised(Exception):
    """The code that is read raises an error here: this way is none that a call takes."""


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
        self._depth = 0
        self._written: dict[tuple[int, str], Value] = {}
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
        if id(module) not in self._shortcuts or not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
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
        if self._depth > DEPTH:
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
        if self._depth > DEPTH:
            return free()
        names = dict(plain.__globals__)
        for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:
                continue
        frame = Frame(names)
        env = bind(tree.args, args, kwargs, _defaults(plain), more)
        return self._body(tree.body, env, frame)

    def _body(self, body: list[ast.stmt], env: Env, frame: Frame) -> Value:
        self._depth += 1
        try:
            if self._block(body, env, frame) is not None:
                frame.returned.append(NONE)
        finally:
            self._depth -= 1
        if not frame.returned:
            raise Raised
        value = frame.returned[0]
        for other in frame.returned[1:]:
            value = join(value, other)
        return value

    def _call(self, function: Value, args: tuple[Value, ...], kwargs: dict[str, Value], more: bool) -> Value:
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
        lists = [self._list(arg) for arg in args]
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
            return self._attribute(args[0], args[1].value)
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

    # Statements

    def _block(self, body: Sequence[ast.stmt], env: Env, frame: Frame) -> Env | None:
        now: Env | None = env
        for statement in body:
            if now is None:
                return None
            try:
                now = self._statement(statement, now, frame)
            except Raised:
                return None
        return now

    def _statement(self, node: ast.stmt, env: Env, frame: Frame) -> Env | None:
        match node:
            case ast.Assign(targets=targets, value=value):
                found = self._value(value, env, frame)
                for target in targets:
                    self._assign(target, found, env, frame)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self._assign(target, self._value(value, env, frame), env, frame)
            case ast.AugAssign(target=target, op=op, value=value):
                loaded = self._value(_as_load(target), env, frame)
                self._assign(target, binary(op, loaded, self._value(value, env, frame)), env, frame)
            case ast.Expr(value=value):
                self._value(value, env, frame)
            case ast.Return(value=value):
                frame.returned.append(NONE if value is None else self._value(value, env, frame))
                return None
            case ast.Raise():
                return None
            case ast.If(test=test, body=body, orelse=orelse):
                return self._if(test, body, orelse, env, frame)
            case ast.For(target=target, iter=over, body=body):
                return self._for(target, over, body, env, frame)
            case ast.While(body=body):
                return merge(env, self._once(body, dict(env), frame))
            case ast.With(items=items, body=body):
                for item in items:
                    found = self._value(item.context_expr, env, frame)
                    if item.optional_vars is not None:
                        self._assign(item.optional_vars, found, env, frame)
                return self._block(body, env, frame)
            case ast.Try(body=body, handlers=handlers, finalbody=final):
                before = dict(env)
                after = self._block(body, env, frame)
                for other in handlers:
                    after = merge(after, self._block(other.body, dict(before), frame))
                return self._block(final, after, frame) if after is not None and final else after
            case ast.FunctionDef(name=name):
                env[name] = self._local(node, env, frame)
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

    def _local(self, node: Any, env: Env, frame: Frame) -> Known:
        def call(args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
            if self._depth > DEPTH:
                return free()
            inner = {**env, **bind(node.args, args, kwargs, {}, True)}
            if isinstance(node, ast.Lambda):
                return self._value(node.body, inner, frame)
            return self._body(node.body, inner, Frame(frame.globals))

        return Known(Local(node, frame, env, call))

    def _if(
        self, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt], env: Env, frame: Frame
    ) -> Env | None:
        decided = truth(self._value(test, env, frame))
        if decided is not None:
            return self._block(body if decided else orelse, env, frame)
        if self.zeros and _is_mask_test(test):
            return self._block(orelse, env, frame)  # a mask marks padding: what is computed there is not used
        absent, given = self._none_test(test, env)
        one, other = dict(env), dict(env)
        if given is not None:
            other[given] = NONE
        then, otherwise = self._block(body, one, frame), self._block(orelse, other, frame)
        if given is not None and otherwise is not None and otherwise.get(given) is NONE:
            otherwise[given] = env[given]
        return merge(then, otherwise, absent)

    @staticmethod
    def _none_test(test: ast.expr, env: Env) -> tuple[str | None, str | None]:
        """Return, for ``x is not None`` (perhaps ``and`` more), the argument that `x` is, and the variable's name."""
        match test:
            case ast.Compare(
                left=ast.Name(id=name), ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]
            ):
                atom = the_atom(env.get(name, NONE))
                if atom is not None and atom[0] == "arg":
                    return atom[1], name
        return None, None

    def _for(
        self, target: ast.expr, over: ast.expr, body: list[ast.stmt], env: Env, frame: Frame
    ) -> Env | None:
        found = self._list(self._value(over, env, frame))
        if found is None:
            self._assign(target, free(sure=True), env, frame)
            before = dict(env)
            self._once(body, dict(env), frame)
            changed = self._once(body, {**env, **_assigned(body)}, frame)
            return merge(before, changed)
        outer, frame.skipped, frame.broken = (frame.skipped, frame.broken), [], []
        now: Env | None = env
        left: Env | None = None
        for value in found:
            if now is None:
                break
            self._assign(target, value, now, frame)
            now = self._block(body, now, frame)
            for skipped in frame.skipped:
                now = merge(now, skipped)
            for broken in frame.broken:
                left = merge(left, broken)
            frame.skipped, frame.broken = [], []
        frame.skipped, frame.broken = outer
        return merge(now, left)

    def _once(self, body: list[ast.stmt], env: Env, frame: Frame) -> Env | None:
        outer, frame.skipped, frame.broken = (frame.skipped, frame.broken), [], []
        after = self._block(body, env, frame)
        for other in (*frame.skipped, *frame.broken):
            after = merge(after, other)
        frame.skipped, frame.broken = outer
        return after

    def _assign(self, target: ast.expr, value: Value, env: Env, frame: Frame) -> None:
        match target:
            case ast.Name(id=name):
                env[name] = value
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                starred = next((k for k, part in enumerate(elts) if isinstance(part, ast.Starred)), None)
                parts = unpacked(value, self._list(value), len(elts), starred)
                for part, found in zip(elts, parts, strict=True):
                    self._assign(part.value if isinstance(part, ast.Starred) else part, found, env, frame)
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                held, key = env.get(name), self._value(index, env, frame)
                if isinstance(held, Entries) and isinstance(key, Known) and _hashable(key.value):
                    env[name] = Entries((*held.pairs, (key.value, value)), held.open)
                elif isinstance(held, Entries):
                    env[name] = Entries(held.pairs, True)
                else:
                    env[name] = free(sure=True)
            case ast.Attribute(value=owner, attr=attr):
                held = self._value(owner, env, frame)
                if isinstance(held, Known):
                    self._written[id(held.value), attr] = free()
            case _:
                pass

    def _list(self, value: Value) -> tuple[Value, ...] | None:
        return listed(value, self._known)

    # Expressions

    def _value(self, node: ast.expr, env: Env, frame: Frame) -> Value:
        match node:
            case ast.Constant(value=value):
                return Known(value)
            case ast.Name(id=name):
                return self._name(name, env, frame)
            case ast.Attribute(value=owner, attr=attr):
                return self._attribute(self._value(owner, env, frame), attr)
            case ast.Call():
                return self._call_node(node, env, frame)
            case ast.BinOp(left=left, op=op, right=right):
                return binary(op, self._value(left, env, frame), self._value(right, env, frame))
            case ast.UnaryOp(op=op, operand=operand):
                return unary(op, self._value(operand, env, frame))
            case ast.BoolOp(op=op, values=values):
                return self._bool(op, values, env, frame)
            case ast.Compare():
                if len(node.ops) != 1:
                    return free(sure=True)
                left = self._value(node.left, env, frame)
                return compare(node.ops[0], left, self._value(node.comparators[0], env, frame))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                decided = truth(self._value(test, env, frame))
                if decided is not None:
                    return self._value(body if decided else orelse, env, frame)
                absent, _ = self._none_test(test, env)
                return join(self._value(body, env, frame), self._value(orelse, env, frame), absent)
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                kind = tuple if isinstance(node, ast.Tuple) else list
                return self._items(elts, kind, env, frame)
            case ast.Dict(keys=keys, values=values):
                return self._dict(keys, values, env, frame)
            case ast.Subscript(value=owner, slice=index):
                return self._item(self._value(owner, env, frame), self._index(index, env, frame))
            case ast.Slice():
                return self._index(node, env, frame)
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                return self._comprehension(node.elt, node.generators, env, frame)
            case ast.NamedExpr(target=target, value=value):
                found = self._value(value, env, frame)
                self._assign(target, found, env, frame)
                return found
            case ast.Lambda():
                return self._local(node, env, frame)
            case ast.Starred(value=value):
                return self._value(value, env, frame)
            case ast.JoinedStr():
                return free(sure=True)
            case _:
                return free()

    def _name(self, name: str, env: Env, frame: Frame) -> Value:
        if name in env:
            return env[name]
        if name in frame.globals:
            return self._known(frame.globals[name])
        builtins: Any = frame.globals.get("__builtins__", {})
        builtins = builtins if isinstance(builtins, dict) else vars(builtins)
        return Known(builtins[name]) if name in builtins else free()

    def _known(self, value: Any) -> Value:
        if isinstance(value, Tensor):
            return ZERO if id(value) in self._parameters else free(sure=True)
        return Known(value)

    def _attribute(self, owner: Value, name: str) -> Value:
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
        if (id(held), name) in self._written:
            return self._written[id(held), name]
        try:
            value = getattr(held, name)
        except Exception as error:
            if isinstance(held, nn.Module) and isinstance(error, AttributeError):
                raise Raised from error
            return free()
        if isinstance(held, nn.Module) and held is not self.owner and self.watcher is not None:
            self.watcher.read(held, name, value)
        return self._known(value)

    def _call_node(self, node: ast.Call, env: Env, frame: Frame) -> Value:
        args: list[Value] = []
        kwargs: dict[str, Value] = {}
        more = False
        for part in node.args:
            if isinstance(part, ast.Starred):
                found = self._list(self._value(part.value, env, frame))
                args += found or ()
                more = more or found is None
            else:
                args.append(self._value(part, env, frame))
        for keyword in node.keywords:
            value = self._value(keyword.value, env, frame)
            if keyword.arg is not None:
                kwargs[keyword.arg] = value
            elif isinstance(value, Entries):
                kwargs |= {key: entry for key, entry in value.pairs if isinstance(key, str)}
                more = more or value.open
            else:
                more = more or not (isinstance(value, Known) and value.value == {})
        if isinstance(node.func, ast.Attribute):
            owner = self._value(node.func.value, env, frame)
            if not isinstance(owner, Known) or isinstance(owner.value, (dict, str)):
                return self._method(owner, node.func, args, kwargs, env, frame)
            if owner.value is torch and node.func.attr == "is_grad_enabled":
                return Known(True)
            return self._call(self._attribute(owner, node.func.attr), tuple(args), kwargs, more)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            return self._super(env, frame)
        return self._call(self._value(node.func, env, frame), tuple(args), kwargs, more)

    def _super(self, env: Env, frame: Frame) -> Value:
        cls, held = frame.globals.get("__class__"), env.get("self")
        if isinstance(cls, type) and isinstance(held, Known) and isinstance(held.value, cls):
            return Known(super(cls, held.value))
        return free()

    def _method(
        self,
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
            entries = Entries(tuple((key, self._known(value)) for key, value in owner.value.items()))
        if isinstance(entries, Entries):
            held, result = dict_method(entries, name, args)
            if variable is not None and isinstance(owner, Entries):
                env[variable] = held
            return result
        if (
            isinstance(owner, Known)
            and isinstance(owner.value, str)
            and all(isinstance(a, Known) for a in args)
        ):
            try:
                return Known(getattr(owner.value, name)(*(a.value for a in args)))  # type: ignore[union-attr]
            except Exception:
                return free()
        return free()

    def _bool(self, op: ast.boolop, values: Sequence[ast.expr], env: Env, frame: Frame) -> Value:
        """Return the value of ``and`` and ``or``; one that decides ends it, however unknown those before it are."""
        stop = isinstance(op, ast.Or)
        undecided: list[Value] = []
        for node in values:
            value = self._value(node, env, frame)
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

    def _items(self, elts: Sequence[ast.expr], kind: type, env: Env, frame: Frame) -> Value:
        items: list[Value] = []
        for part in elts:
            value = self._value(part, env, frame)
            if isinstance(part, ast.Starred):
                found = self._list(value)
                if found is None:
                    return free(sure=True)
                items += found
            else:
                items.append(value)
        return Items(tuple(items), kind)

    def _dict(
        self, keys: Sequence[ast.expr | None], values: Sequence[ast.expr], env: Env, frame: Frame
    ) -> Value:
        pairs: list[tuple[Any, Value]] = []
        more = False
        for key_node, value_node in zip(keys, values, strict=True):
            value = self._value(value_node, env, frame)
            key = self._value(key_node, env, frame) if key_node is not None else None
            if isinstance(key, Known) and _hashable(key.value):
                pairs.append((key.value, value))
            elif key is None and isinstance(value, Entries):
                pairs += value.pairs
                more = more or value.open
            else:
                more = True
        return Entries(tuple(pairs), more)

    def _index(self, node: ast.expr, env: Env, frame: Frame) -> Value:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return Items(tuple(NONE if p is None else self._value(p, env, frame) for p in parts), slice)
        if isinstance(node, ast.Tuple):
            return Items(tuple(self._index(part, env, frame) for part in node.elts))
        return self._value(node, env, frame)

    def _item(self, owner: Value, index: Value) -> Value:
        if isinstance(owner, Entries) and isinstance(index, Known):
            found = owner.get(index.value) if _hashable(index.value) else None
            return found if found is not None else free()
        if isinstance(owner, Known) and isinstance(index, Known):
            try:
                return self._known(owner.value[index.value])
            except Exception:
                return free()
        found = self._list(owner)
        if found is None:
            return leaves.item(owner, index)
        if (
            isinstance(index, Known)
            and isinstance(index.value, int)
            and -len(found) <= index.value < len(found)
        ):
            return found[index.value]
        if (
            isinstance(index, Items)
            and index.kind is slice
            and all(isinstance(b, Known) for b in index.items)
        ):
            bounds = [b.value for b in index.items]  # type: ignore[union-attr]
            return Items(tuple(found[slice(*bounds)]), list if not isinstance(owner, Items) else owner.kind)
        if self.watcher is not None and isinstance(owner, Known):
            for item in found:  # one of them, which is not known: what is read of it is read of each
                if isinstance(item, Known) and isinstance(item.value, nn.Module):
                    self.watcher.read(item.value, "[?]", item.value)
        return free()

    def _comprehension(
        self, element: ast.expr, generators: Sequence[ast.comprehension], env: Env, frame: Frame
    ) -> Value:
        first, *others = generators
        found = self._list(self._value(first.iter, env, frame))
        inner = dict(env)
        if found is None or others or first.ifs:
            for generator in generators:
                self._assign(generator.target, free(sure=True), inner, frame)
            self._value(element, inner, frame)
            return free(sure=True)
        items = []
        for value in found:
            self._assign(first.target, value, inner, frame)
            items.append(self._value(element, inner, frame))
        return Items(tuple(items), list)


@functools.cache
def _defaults(function: types.FunctionType) -> Mapping[str, Value]:
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


def _assigned(body: Sequence[ast.stmt]) -> Env:
    """Return every name that `body` assigns, as unknown: what it may be in a later turn of the loop."""
    names = {
        node.id
        for statement in body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return {name: free() for name in names}


def _has_modules(value: Value) -> bool:
    if isinstance(value, Items):
        return any(_has_modules(item) for item in value.items)
    return isinstance(value, Known) and (isinstance(value.value, nn.Module) or callable(value.value))


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


def _hashable(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, type(None)))
