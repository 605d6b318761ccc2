"""A model that runs in a wider type than its weights are stored in."""

from __future__ import annotations

import copy
from contextlib import ExitStack
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


class Wider:
    """The type in which a model runs whose weights are stored in a narrower one.

    A model asks for the type of weights that it does not read yet, and casts by that. So while it is called, stand-ins
    of the wider type, NaN in one place of memory, are in the place of its weights.

    Attributes:
        dtype: That type; None for that of each weight.
        needed: Whether there are narrower weights.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self._model, self.dtype = model, dtype
        self.needed = any(is_narrower(tensor, dtype) for tensor in (*model.parameters(), *model.buffers()))
        self._owns: dict[int, tuple[Tensor, Tensor]] = {}  # stand-in and weight, by the id of the stand-in

    def begin(self, hooks: ExitStack) -> None:
        """Put hooks on the model, which go when `hooks` are closed."""
        if not self.needed:
            return
        for handle in (
            self._model.register_forward_pre_hook(lambda *_: self._enter(), prepend=True),
            self._model.register_forward_hook(lambda *_: self.leave(), always_call=True),
        ):
            hooks.callback(handle.remove)

    def own(self, there: Tensor) -> Tensor:
        """Return the weight that what is in a module stands for."""
        return self._owns[id(there)][1] if id(there) in self._owns else there

    def leave(self) -> None:
        """Put all weights back; the model has been called."""
        for store, key, there in _slots(self._model):
            if id(there) in self._owns:
                store[key] = self.own(there)

    def _enter(self) -> None:
        self.leave()
        known = {id(weight): stand_in for stand_in, weight in self._owns.values()}
        for store, key, weight in _slots(self._model):
            if is_narrower(weight, self.dtype):
                stand_in = known.get(id(weight))
                if stand_in is None:
                    stand_in = weight.new_full((), torch.nan, dtype=self.dtype).expand(weight.shape)
                    stand_in = nn.Parameter(stand_in, False) if isinstance(weight, nn.Parameter) else stand_in
                    self._owns[id(stand_in)] = stand_in, weight
                store[key] = stand_in


def _slots(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return where the weights of a module are, and the weights."""
    stores: list[dict[str, Any]] = []
    for part in module.modules():
        stores += part._parameters, part._buffers
    return [(store, key, weight) for store in stores for key, weight in store.items() if weight is not None]
