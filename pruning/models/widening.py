"""A model that runs in a wider type than its weights are stored in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pruning.models.pages import FilePages, give_back, in_large_pages
from pruning.on_demand import OnDemand


def is_narrower(weight: Tensor, dtype: torch.dtype | None) -> bool:
    """Tell whether a weight is of a narrower type of floating numbers than `dtype`; never if that is None."""
    return dtype is not None and weight.is_floating_point() and weight.itemsize < dtype.itemsize


def widened(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a weight in `dtype` if its own type is narrower, else the weight itself."""
    if dtype is None or not is_narrower(weight, dtype):
        return weight
    if weight.device.type != "cpu" or (weight.requires_grad and torch.is_grad_enabled()):
        return weight.to(dtype)
    return in_large_pages(weight, dtype).copy_(weight)


def borrowed(model: nn.Module, dtype: torch.dtype | None = None) -> Mapping[str, Tensor]:
    """Return the parameters of a model by path. One that lies in a file is a copy, made when it is asked for.

    Args:
        model: The model.
        dtype: Type that narrower ones are widened to; None: as stored.
    """
    files = FilePages()

    def copied(weight: Tensor) -> Tensor:
        weight = weight.detach()
        if not files.hold(weight):
            return widened(weight, dtype)
        copy = widened(weight, dtype)
        copy = weight.clone() if copy is weight else copy
        give_back([weight])
        return copy

    return OnDemand(dict(model.named_parameters()), copied)


def widened_copy(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return a copy of a part of a model that runs by itself in `dtype`; hooks are left out."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        part._forward_pre_hooks.clear()
        part._forward_hooks.clear()
    for store, key, weight in _slots(copied):
        if is_narrower(weight, dtype):
            wide = widened(weight.detach(), dtype)
            wide = nn.Parameter(wide, weight.requires_grad) if isinstance(weight, nn.Parameter) else wide
            store[key] = wide
    return copied


class _Carried(torch.autograd.Function):
    """Hands the gradient of a copy on to what it is a copy of."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, copy: Tensor) -> Tensor:
        ctx.like = own.device, own.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.to(*ctx.like), None


def standing_for(own: Tensor, copy: Tensor) -> Tensor:
    """Return what stands in a module in the place of a weight, from which gradients flow to the weight."""
    if own.requires_grad and torch.is_grad_enabled():
        return _Carried.apply(own, copy)  # type: ignore[no-any-return]
    return nn.Parameter(copy, own.requires_grad) if isinstance(own, nn.Parameter) else copy


class _StandIn(Tensor):
    """What a model finds in the place of a weight that was not brought.

    It has the shape, the device and the wider type. Whoever reads its values, as a layer that works with the weights of
    another one without calling it, gets them from the weight itself.

    Attributes:
        own: The weight.
    """

    own: Tensor
    _read: Callable[[Tensor], Tensor]

    @staticmethod
    def of(own: Tensor, dtype: torch.dtype, read: Callable[[Tensor], Tensor]) -> _StandIn:
        """Return what stands for a weight; `read` returns what is worked with in its place."""
        shown = own.detach().new_empty((), dtype=dtype).expand(own.shape)  # one place of memory
        made = shown.as_subclass(_StandIn)
        made.own, made._read = own, read
        if isinstance(own, nn.Parameter):
            made._is_param = True  # by which torch tells parameters of other classes
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given: tuple[tuple[Any, ...], dict[str, Any]] = args, kwargs or {}
        asked = getattr(func, "__self__", None) if func.__name__ == "__get__" else func
        if asked not in _ABOUT:
            given = tree_map_only(cls, lambda found: found._read(found.own), given)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*given[0], **given[1])


_ABOUT = {
    *(Tensor.dtype, Tensor.device, Tensor.shape, Tensor.ndim, Tensor.layout, Tensor.itemsize, Tensor.nbytes),
    *(Tensor.is_cuda, Tensor.is_cpu, Tensor.is_meta, Tensor.is_quantized, Tensor.is_sparse),
    *(
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.element_size,
        Tensor.is_floating_point,
        Tensor.is_complex,
    ),
}
"""What can be asked of a stand-in without reading the weight."""


class Wider:
    """The type in which a model runs whose weights are stored in a narrower one.

    A model asks for the type of weights that it does not read yet, and casts by that. So while it is called, stand-ins
    of the wider type are in the place of its weights.

    Attributes:
        dtype: That type; None for that of each weight.
        needed: Whether there are narrower weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> None:
        self._model, self.dtype, self._device = model, dtype, device
        self.needed = any(is_narrower(tensor, dtype) for tensor in (*model.parameters(), *model.buffers()))

    @staticmethod
    def own(there: Tensor) -> Tensor:
        """Return the weight that what is in a module stands for."""
        return there.own if isinstance(there, _StandIn) else there

    @contextmanager
    def called(self) -> Iterator[None]:
        """Have the stand-ins in the model, if it needs any; weights that are put there meanwhile stay."""
        if not self.needed or self.dtype is None:
            yield
            return
        try:
            for store, key, weight in _slots(self._model):
                if is_narrower(weight, self.dtype):
                    store[key] = _StandIn.of(weight, self.dtype, self._read)
            yield
        finally:
            for store, key, there in _slots(self._model):
                store[key] = self.own(there)

    def _read(self, own: Tensor) -> Tensor:
        return standing_for(own, widened(own.detach().to(self._device), self.dtype))


def _slots(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return where the weights of a module are, and the weights."""
    stores: list[dict[str, Any]] = []
    for part in module.modules():
        stores += part._parameters, part._buffers
    return [(store, key, weight) for store in stores for key, weight in store.items() if weight is not None]
