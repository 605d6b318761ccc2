"""One call of a model, counted: on the meta device, so that a model of any size costs seconds and little memory.

What PyTorch knows of a tensor there is its shape alone. Some models let values decide what they compute: how many
tokens a mask leaves in, and where. Small tables are therefore computed beside it, as far as no weight goes in, which is
enough for the masks and positions of diffusers. Routers of experts have weights: experts are taken to get equally many
tokens, which costs what any other routing costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

TABLE = 1 << 20
"""Most values of a tensor that are computed beside the meta device."""

_BY_VALUE = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_HARMLESS = {"alpha", "approximate"}  # arguments by keyword that leave a result's shape and type as they are
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm}
_SOFTMAX = {torch.ops.aten._softmax, torch.ops.aten._safe_softmax}
_CPU, _META = torch.device("cpu"), torch.device("meta")


class Tracing(TorchDispatchMode):
    """While it is entered, counts floating point operations and knows the values of small tables.

    Attributes:
        flops: Operations so far, two for each multiply-accumulate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._values = WeakTensorKeyDictionary()
        self._lost: dict[int, Tensor] = {}  # by storage: something unknown was written into these values
        self._dtypes: dict[Any, torch.dtype] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would import its compiler to keep it out of here

    def to_meta(self, value: Any) -> Any:
        """Return a tree of arguments on the meta device; the values of its tables stay known."""
        if isinstance(value, Tensor):
            meta = value.to("meta")
            if not value.is_meta and _is_table(meta):
                self._values[meta] = value.detach().to(_CPU, copy=True)
            return meta
        if isinstance(value, Mapping):
            return {key: self.to_meta(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_meta(item) for item in value)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation and count it; do it on values too, where those of all its tensors are known."""
        kwargs = kwargs or {}
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            out = _product(func, args) if func._overloadpacket in _PRODUCTS else None
            out = func(*args, **kwargs) if out is None else out
            self.flops += formula(*args, **kwargs, out_val=out)
            return out
        if func._overloadpacket in _INDEXING:
            args = (args[0], self._places(args[1]), *args[2:])
        tensors = list(_tensors(args))
        values = [self._value(tensor) for tensor in tensors]
        if all(value is not None for value in values):
            return self._known(func, args, kwargs)
        if func._schema.is_mutable and (value := values[0]) is not None and tensors[0].is_meta:
            self._lost[value.untyped_storage()._cdata] = value
        if func._overloadpacket is torch.ops.aten.topk:
            return self._evenly(func(*args, **kwargs), args[0].shape[-1])
        if torch.Tag.pointwise in func.tags and not func._schema.is_mutable and set(kwargs) <= _HARMLESS:
            return self._pointwise(func, args, kwargs, tensors)
        if func._overloadpacket in _SOFTMAX and not kwargs:
            return _empty(args[0].shape, args[0].dtype, args[0])
        if func._overloadpacket is torch.ops.aten.native_layer_norm and args[0].is_meta:
            return _normed(*args[:2])
        return func(*args, **kwargs)

    def _value(self, tensor: Tensor) -> Tensor | None:
        """Return the values of a tensor, if they are known."""
        if not tensor.is_meta:
            return tensor
        value = self._values.get(tensor)
        return None if value is None or value.untyped_storage()._cdata in self._lost else value

    def _places(self, indices: Any) -> list[Any]:
        """Return indices in which masks that are known have become the places that they leave in."""
        found = []
        for index in indices:
            value = self._value(index) if isinstance(index, Tensor) and index.dtype is torch.bool else None
            found += [index] if value is None else map(self.to_meta, value.nonzero(as_tuple=True))
        return found

    def _known(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do an operation of which all tensors are known, or that has none."""
        on_meta = any(tensor.is_meta for tensor in _tensors(args))
        values = [self._of(value) for value in args]
        if on_meta and (_BY_VALUE & set(func.tags) or kwargs.get("device") == _CPU):
            found = func(
                *values, **kwargs
            )  # the shape, or something that Python asks for, follows from values
            return found if kwargs.get("device") == _CPU else self.to_meta(found)
        out = func(*args, **kwargs)
        tables = [tensor for tensor in _tensors((out,)) if tensor.is_meta]
        if any(map(_is_table, tables)) and "empty" not in func._overloadpacket.__name__:
            here = {**kwargs, "device": _CPU} if kwargs.get("device") is not None else kwargs
            for table, value in zip(tables, _tensors((func(*values, **here),)), strict=True):
                if _is_table(table):
                    self._values[table] = value
        return out

    def _evenly(self, largest: tuple[Tensor, Tensor], choices: int) -> tuple[Tensor, Tensor]:
        """Let the places of the largest scores, which are not known, have values: each is taken equally often."""
        places = largest[1]
        if _is_table(places):
            self._values[places] = (torch.arange(places.numel()) % choices).view(places.shape)
        return largest

    def _of(self, value: Any) -> Any:
        """Return an argument with values in place of its tensors."""
        if isinstance(value, Tensor):
            return self._value(value)
        return [self._of(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _pointwise(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Tensor:
        """Return the result's shape alone, once the result's type is known: PyTorch takes long to derive it."""
        whole = max(tensors, key=lambda tensor: (tensor.ndim, tensor.numel()))
        key = (func, *(_type_of(value) for value in args))
        if key in self._dtypes and all(_fits(tensor.shape, whole.shape) for tensor in tensors):
            return _empty(whole.shape, self._dtypes[key], whole)
        out = func(*args, **kwargs)
        self._dtypes[key] = out.dtype
        return out


class Constants(TorchFunctionMode):
    """While it is entered, what a model writes down in Python keeps its values, which PyTorch drops on meta."""

    def __init__(self, tracing: Tracing) -> None:
        super().__init__()
        self._tracing = tracing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch; `torch.tensor` for the meta device makes a table whose values are known."""
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or _CPU) == _META:
            return self._tracing.to_meta(func(*args, **kwargs | {"device": _CPU}))
        return func(*args, **kwargs)


@contextmanager
def autocast_on_meta() -> Iterator[None]:
    """Let models ask for a precision on the device of their tensors: PyTorch knows none on meta, where none matters."""
    autocast = torch.amp.autocast_mode.autocast
    before = autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "meta":
            before(self, "cpu", enabled=False)
        else:
            before(self, device_type, *args, **kwargs)

    autocast.__init__ = init
    try:
        yield
    finally:
        autocast.__init__ = before


def _product(func: Any, args: Any) -> Tensor | None:
    """Return what a product of matrices gives, as a shape on the meta device; PyTorch takes long to derive it."""
    left, right = args[-2:]
    if not (left.is_meta and right.is_meta and left.shape[-1] == right.shape[-2]):
        return None
    return _empty((*left.shape[:-1], right.shape[-1]), left.dtype)


def _normed(values: Tensor, normalized: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a layer norm gives: the values, their means and their inverse deviations."""
    kept = values.ndim - len(normalized)
    stats = torch.empty((*values.shape[:kept], *(1 for _ in normalized)), dtype=values.dtype, device=_META)
    return _empty(values.shape, values.dtype), stats, stats


def _empty(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor | None = None) -> Tensor:
    """Return a shape on the meta device, laid out in memory as another tensor."""
    if like is None or like.is_contiguous():
        return torch.empty(shape, dtype=dtype, device=_META)
    return torch.empty_like(like, dtype=dtype, device=_META)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _is_table(tensor: Tensor) -> bool:
    return tensor.numel() <= TABLE


def _type_of(value: Any) -> Any:
    """Return what the type of a result follows from: a tensor of no dimensions counts for less."""
    return (value.dtype, value.ndim == 0) if isinstance(value, Tensor) else (type(value), str(value))


def _fits(part: torch.Size, whole: torch.Size) -> bool:
    """Tell whether a tensor is broadcast to a shape without changing it."""
    return all(a in (1, b) for a, b in zip(reversed(part), reversed(whole), strict=False))
