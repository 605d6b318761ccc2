"""A model that runs in a wider type than its weights are stored in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_narrower(weight: Tensor, dtype: torch.dtype | None) -> bool:
    """Tell whether a weight is of a narrower type of floating numbers than `dtype`; never if that is None."""
    return dtype is not None and weight.is_floating_point() and weight.itemsize < dtype.itemsize


def widened(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a weight in `dtype` if its own type is narrower, else the weight itself."""
    return weight.to(dtype) if is_narrower(weight, dtype) else weight


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


class Wider:
    """The type in which a model runs whose weights are stored in a narrower one.

    A model asks for the type of weights that it does not read yet, and casts by that. So while it is called, stand-ins
    of the wider type, NaN in one place of memory, are in the place of its weights. Those that were added to the model
    since are widened for as long.

    Attributes:
        dtype: That type; None for that of each weight.
        needed: Whether there are narrower weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model, self.dtype = model, dtype
        self.needed = any(is_narrower(tensor, dtype) for tensor in (*model.parameters(), *model.buffers()))
        self._served = {(id(store), key): store for store, key, _ in _slots(model)}
        self._owns: dict[int, tuple[Tensor, Tensor]] = {}  # stand-in and weight, by the id of the stand-in

    def own(self, there: Tensor) -> Tensor:
        """Return the weight that what is in a module stands for."""
        return self._owns[id(there)][1] if id(there) in self._owns else there

    @contextmanager
    def called(self) -> Iterator[None]:
        """Have the stand-ins in the model, if it needs any; weights that are put there meanwhile stay."""
        if not self.needed:
            yield
            return
        try:
            self._put_stand_ins()
            yield
        finally:
            for store, key, there in _slots(self._model):
                store[key] = self.own(there)
            self._owns.clear()

    def _put_stand_ins(self) -> None:
        known: dict[int, Tensor] = {}
        for store, key, weight in _slots(self._model):
            if not is_narrower(weight, self.dtype):
                continue
            stand_in = known.get(id(weight))
            if (id(store), key) not in self._served:  # was added since, so that nobody brings it
                stand_in = standing_for(weight, widened(weight.detach(), self.dtype))
            elif stand_in is None:
                stand_in = weight.new_full((), torch.nan, dtype=self.dtype).expand(weight.shape)
                stand_in = nn.Parameter(stand_in, False) if isinstance(weight, nn.Parameter) else stand_in
                known[id(weight)] = stand_in
            self._owns[id(stand_in)] = stand_in, weight
            store[key] = stand_in


def _slots(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return where the weights of a module are, and the weights."""
    stores: list[dict[str, Any]] = []
    for part in module.modules():
        stores += part._parameters, part._buffers
    return [(store, key, weight) for store in stores for key, weight in store.items() if weight is not None]
