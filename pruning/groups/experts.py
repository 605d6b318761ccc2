"""Experts among which a router chooses: hidden channels of stacked experts, and experts as a whole.

Experts are the items of a list of modules, or matrices stacked in parameters of three dimensions. Hidden channels of
the items of a list are those of any feed-forward layer; in a stack a unit is the channel of one index in all experts,
since they share their sizes. A whole expert goes with its rows of the router, so that the router chooses among those
that stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from pruning.groups.base import handler, kind
from pruning.groups.feed_forward import FFN_CHANNELS, hidden_channels
from pruning.groups.words import in_list, words
from pruning.types import LENGTH, ModuleAttribute, ParamSlice, PrunableGroup

EXPERTS = kind("experts", "Whole experts of a mixture, with their rows of the router.")

UP, DOWN = "gate_up_proj", "down_proj"
"""The stacks of a layer of experts, (E, H, 2I) and (E, I, H)."""

SIZES = ("moe_intermediate_dim", "intermediate_size", "hidden_dim")


@dataclass(frozen=True)
class Mixture:
    """A layer that sends each token to some of its experts.

    Attributes:
        path: Path of the layer.
        router: Path of the module whose weight, (E, ...), gives the experts' logits.
        experts: Path of the list with a module for each expert, or of the module that stacks their weights.
        count: E.
        chosen: Experts that a token is sent to, rounded up; as many must stay.
        stacked: Whether the weights are stacked.
        capacity: Name of the layer's number that says how many tokens all experts together have room for, by token;
            empty where tokens choose their experts and not the other way round.
    """

    path: str
    router: str
    experts: str
    count: int
    chosen: int
    stacked: bool
    capacity: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """What puts out the result of each expert: paths of modules, or of matrices of a stack."""
        if self.stacked:
            return tuple(
                part.path for part in ParamSlice(f"{self.experts}.{DOWN}", 1, 1, stack=self.count).entries
            )
        return tuple(f"{self.experts}.{index}" for index in range(self.count))


@handler("experts", FFN_CHANNELS)
def stacked_experts(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the hidden channels of a stack of experts."""
    stack = _stack(module)
    if stack is None or not in_list(path):
        return
    experts, channels, _ = stack
    if channels < 2:
        return
    produced = [ParamSlice(f"{path}.{UP}", 2, 1, offset) for offset in (0, channels)]
    consumed = ParamSlice(f"{path}.{DOWN}", 1, 1, stack=experts)
    sizes = [name for name in SIZES if getattr(module, name, None) == channels]
    yield hidden_channels(path, channels, produced, consumed, sizes)


@handler("mixtures", EXPERTS)
def experts(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield the experts of a layer, of which as many must stay as a token is sent to."""
    mixture = mixture_at(path, module)
    if mixture is None or mixture.count <= mixture.chosen:
        return
    router, holder = model.get_submodule(mixture.router), model.get_submodule(mixture.experts)
    owned = [f"{mixture.router}.{name}" for name, _ in router.named_parameters()]
    sizes = [
        ModuleAttribute(where, name, 1)
        for where, part in ((path, module), *_below(mixture.router, router), (mixture.experts, holder))
        for name in _counts(part, mixture.count)
    ]
    if mixture.stacked:
        owned += [f"{mixture.experts}.{name}" for name in (UP, DOWN)]
    else:
        sizes.append(ModuleAttribute(mixture.experts, LENGTH, 1))
    yield PrunableGroup(
        name=f"{path}:{EXPERTS}",
        module=path,
        kind=EXPERTS,
        num_units=mixture.count,
        unit_size=1,
        produced_by=tuple(ParamSlice(name, 0, 1) for name in owned),
        attributes=tuple(sizes),
        min_units=mixture.chosen,
    )


def mixtures(model: nn.Module) -> list[Mixture]:
    """Return the layers of a model that choose among experts, in module order."""
    found = (mixture_at(path, module) for path, module in model.named_modules())
    return [mixture for mixture in found if mixture is not None]


def mixture_at(path: str, module: nn.Module) -> Mixture | None:
    """Return what a module is as a mixture of experts; None for one whose parts do not say so.

    It has a child called experts, a list of modules or a stack, and one called gate or router all of whose parameters
    have an entry for each expert; and it says how many experts a token is sent to.
    """
    children = dict(module.named_children())
    held = {name: _held(child) for name, child in children.items() if "experts" in words(name)}
    holder, count = next(((name, count) for name, count in held.items() if count), ("", 0))
    router = next((name for name, child in children.items() if _chooses(name, child, count)), None)
    if router is None:
        return None
    chosen, capacity = _chosen(module, children[router])
    if not chosen:
        return None
    prefix = f"{path}." if path else ""
    stacked = _stack(children[holder]) is not None
    return Mixture(path, prefix + router, prefix + holder, count, chosen, stacked, capacity)


def _stack(module: nn.Module) -> tuple[int, int, int] | None:
    """Return the numbers of experts, hidden channels and channels of a module that stacks experts."""
    own = dict(module.named_parameters())
    up, down = own.get(UP), own.get(DOWN)
    if up is None or down is None or len(own) > 2 or up.ndim != 3 or down.ndim != 3:
        return None
    experts, channels, width = down.shape
    return (experts, channels, width) if up.shape == (experts, width, 2 * channels) else None


def _held(module: nn.Module) -> int:
    """Return how many experts a module holds, as a list or a stack."""
    stack = _stack(module)
    return stack[0] if stack else len(module) if isinstance(module, nn.ModuleList) else 0


def _chooses(name: str, module: nn.Module, experts: int) -> bool:
    """Tell whether a child is a router: by its name, a weight, and entries for each expert in all that it keeps."""
    weight = getattr(module, "weight", None)
    return (
        experts > 0
        and bool(words(name) & {"gate", "router"})
        and isinstance(weight, nn.Parameter)
        and weight.ndim == 2
        and len(weight) == experts
        and not list(module.buffers())  # a bias of the choice that is no parameter cannot be cut
        and all(len(tensor) == experts for tensor in module.parameters())
    )


def _chosen(layer: nn.Module, router: nn.Module) -> tuple[int, str]:
    """Return how many experts a token is sent to, 0 if nothing says so, and the name of the layer's capacity."""
    for name, value in vars(layer).items():
        if isinstance(value, (int, float, Fraction)) and words(name) >= {"capacity", "factor"}:
            return max(1, math.ceil(value)), name
    found = [
        value for part in (layer, router) for name, value in vars(part).items() if _says_how_many(name, value)
    ]
    return max(found, default=0), ""


def _says_how_many(name: str, value: object) -> bool:
    said = words(name)
    of_tokens = (
        said >= {"top", "k"}
        or "topk" in said
        or ("experts" in said and said & {"activated", "active", "per"})
    )
    return type(value) is int and bool(of_tokens)


def _counts(module: nn.Module, experts: int) -> list[str]:
    """Return the attributes of a module that say how many experts there are."""
    return [
        name
        for name, value in vars(module).items()
        if type(value) is int
        and value == experts
        and "experts" in words(name)
        and not _says_how_many(name, value)
    ]


def _below(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from ((f"{path}.{name}" if name else path, part) for name, part in module.named_modules())
