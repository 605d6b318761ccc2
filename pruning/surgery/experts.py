"""Routers that choose among fewer experts, and configs that say how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.errors import PruningError
from pruning.groups.experts import mixture_at, mixtures
from pruning.groups.words import words
from pruning.models import stock_model
from pruning.surgery.config import write_config
from pruning.types import PrunableGroup, config_of, lies_in, size_of


class BarredRouter(nn.Module):
    """A router that never chooses some of its experts: their logits are minus infinity.

    Args:
        router: The router of all experts.
        barred: Those that it does not choose.
    """

    def __init__(self, router: nn.Module, barred: Sequence[int]) -> None:
        super().__init__()
        self.router, self.barred = router, tuple(barred)

    @property
    def weight(self) -> nn.Parameter:
        """The weight of all experts, by which the layer is known as a mixture."""
        return self.router.weight  # type: ignore[return-value]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the router says of the other experts, in the places that they have among all."""
        mode = _Barring(self.weight, self.barred)
        with mode:
            found = self.router(*args, **kwargs)
        if not mode.seen:
            raise PruningError(
                f"a {type(self.router).__name__} does not get its logits from a linear layer, so its experts cannot be "
                "masked"
            )
        return found


class _Barring(TorchFunctionMode):
    """Sets the logits of some experts to minus infinity where the router's weight gives them."""

    def __init__(self, weight: Tensor, barred: Sequence[int]) -> None:
        super().__init__()
        self._weight, self._barred, self.seen = weight, list(barred), False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is F.linear and args[1] is self._weight:
            self.seen = True
            index = torch.tensor(self._barred, device=found.device)
            return found.index_fill(-1, index, -torch.inf)
        return found


@contextmanager
def barred(model: nn.Module, group: PrunableGroup, units: Sequence[int]) -> Iterator[None]:
    """Let the router of a group of experts not choose these, for a while; see `bar`."""
    layer, names = _what_chooses(model, group)
    before = {name: getattr(layer, name) for name in names}
    bar(model, group, units)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


def bar(model: nn.Module, group: PrunableGroup, units: Sequence[int]) -> None:
    """Let the router of a group of experts not choose these, in place; no shape changes.

    Where experts choose tokens, those that stay have room for as many as all had.
    """
    layer, (router, *capacity) = _what_chooses(model, group)
    setattr(layer, router, BarredRouter(getattr(layer, router), units))
    for name in capacity:  # a fraction, so that it is rounded as that of the cut layer
        room = Fraction(getattr(layer, name)) * group.num_units / (group.num_units - len(units))
        setattr(layer, name, room)


def _what_chooses(model: nn.Module, group: PrunableGroup) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the layer of a group of experts, and the names of its router and, if it has one, its capacity."""
    layer = model.get_submodule(group.module)
    mixture = mixture_at(group.module, layer)
    assert mixture is not None
    router = mixture.router.rpartition(".")[2]
    return layer, (router, mixture.capacity) if mixture.capacity else (router,)


def count_experts(model: nn.Module, key: dict[str, Any]) -> None:
    """Let the config say how many experts there are, where all layers have as many and one of its entries counts them.

    What the stock model then has by itself is taken out of the records in `key`.
    """
    counts = _counts(model)
    if len({*counts.values()}) != 1:
        return
    (count,) = {*counts.values()}
    for field, value in config_of(model).items():
        if type(value) is int and value > count and "experts" in words(field):
            stock = stock_model(model, {field: count})
            if stock is not None and counts.items() <= _counts(stock).items():
                write_config(model, {field: count})
                key["modules"] = _left_to_say(model, stock, key["modules"])
                return


def _counts(model: nn.Module) -> dict[str, int]:
    """Return how many experts each layer has, by its path."""
    return {mixture.path: mixture.count for mixture in mixtures(model)}


def _left_to_say(model: nn.Module, stock: nn.Module, records: Mapping[str, Any]) -> dict[str, Any]:
    """Return the records without what a stock model has by itself in layers of experts."""
    left: dict[str, Any] = {}
    layers = _counts(model)
    for path, record in records.items():
        if lies_in(path, layers):
            module = stock.get_submodule(path)
            shapes = {name: list(p.shape) for name, p in module.named_parameters(recurse=False)}
            sizes = {name: size_of(module, name) for name in record.get("attributes", {})}
            record = {part: said for part, said in record.items() if said not in (shapes, sizes)}
        if record:
            left[path] = record
    return left
