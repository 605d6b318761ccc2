"""Routers that choose among fewer experts, and configs that say how many there are."""

from __future__ import annotations

import logging
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
from pruning.surgery.config import DEFAULTED, write_config
from pruning.types import PRUNING_KEY, PrunableGroup, config_of, inside, size_of

logger = logging.getLogger(__name__)


class BarredRouter(nn.Module):
    """A router that never chooses some of its experts: their logits are minus infinity.

    Args:
        router: The router of all experts.
        barred: Those that it does not choose.
    """

    def __init__(self, router: nn.Module, barred: Sequence[int]) -> None:
        super().__init__()
        self.router, self.barred = router, tuple(barred)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the router says of the other experts, in the places that they have among all."""
        mode = _Barring(self.router.weight, self.barred)  # type: ignore[arg-type]
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
    """Let the router of a group of experts not choose these, for a while; no shape changes."""
    mixture = mixture_at(group.module, model.get_submodule(group.module))
    assert mixture is not None
    layer, name = model.get_submodule(mixture.path), mixture.router.rpartition(".")[2]
    router, room = getattr(layer, name), getattr(layer, mixture.capacity, None)
    bar(model, group, units)
    try:
        yield
    finally:
        setattr(layer, name, router)
        if mixture.capacity:
            setattr(layer, mixture.capacity, room)


def bar(model: nn.Module, group: PrunableGroup, units: Sequence[int]) -> None:
    """Let the router of a group of experts not choose these, in place; no shape changes.

    Where experts choose tokens, those that stay have room for as many as all had.
    """
    mixture = mixture_at(group.module, model.get_submodule(group.module))
    assert mixture is not None
    layer, name = model.get_submodule(mixture.path), mixture.router.rpartition(".")[2]
    setattr(layer, name, BarredRouter(getattr(layer, name), units))
    if mixture.capacity:
        room = Fraction(getattr(layer, mixture.capacity)) * mixture.count / (mixture.count - len(units))
        setattr(layer, mixture.capacity, room)  # a fraction, so that rounding up is that of the cut layer


def count_experts(model: nn.Module, key: dict[str, Any]) -> None:
    """Let the config say how many experts there are, where all layers have as many and one of its entries counts them.

    What the stock model then has by itself is taken out of the records in `key`.
    """
    found = mixtures(model)
    counts = {mixture.count for mixture in found}
    if len(counts) != 1 or not any(_recorded(key["modules"], mixture.experts) for mixture in found):
        return
    (count,) = counts
    for field, value in config_of(model).items():
        if type(value) is int and value > count and "experts" in words(field):
            stock = _built(model, {field: count})
            if (
                stock is not None
                and {m.path: m.count for m in mixtures(stock)}.items()
                >= {m.path: m.count for m in found}.items()
            ):
                write_config(model, {field: count})
                key["modules"] = _left_to_say(model, stock, key)
                return


def _recorded(modules: Mapping[str, Any], experts: str) -> bool:
    return any(inside(path, experts) for path in modules)


def _built(model: Any, values: Mapping[str, Any]) -> nn.Module | None:
    """Build the stock model of a config with other values, on the meta device; None if there is none."""
    config = {name: value for name, value in config_of(model).items() if name not in (PRUNING_KEY, DEFAULTED)}
    try:
        with torch.device("meta"):
            return type(model).from_config({**config, **values})
    except Exception as error:  # whatever a class has against a config, it then cannot say it
        logger.debug("%s cannot be built with %s: %s", type(model).__name__, dict(values), error)
        return None


def _left_to_say(model: nn.Module, stock: nn.Module, key: Mapping[str, Any]) -> dict[str, Any]:
    """Return the records without what is so in the stock model; those of mixtures alone can have become so."""
    layers = [mixture.path for mixture in mixtures(model)]
    left: dict[str, Any] = {}
    for path, record in key["modules"].items():
        if not any(inside(path, layer) for layer in layers):
            left[path] = record
            continue
        module = stock.get_submodule(path)
        own = {name: list(p.shape) for name, p in module.named_parameters(recurse=False)}
        sizes = {n: v for n, v in record.get("attributes", {}).items() if size_of(module, n) != v}
        other = {**record, "attributes": sizes, "parameters": record.get("parameters", {})}
        if other["parameters"] == own or not other["parameters"]:
            other["parameters"] = {}
        other = {name: value for name, value in other.items() if value}
        if other:
            left[path] = other
    return left
