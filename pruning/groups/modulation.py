"""Modulation layers and copies of embedders: weights that cost parameters and next to no compute.

They are no groups, since none of their channels goes. A modulation layer (the linear layer of an adaptive norm, which
makes scales, shifts and gates of the timestep and the class or text) may take a low-rank form; embedders that a model
repeats in each of its blocks, weight for weight, may become one. Plans say so in `PruningPlan.ranks` and `shared`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import torch
from torch import nn

from pruning.groups.words import is_norm, words
from pruning.types import ParamSlice, PrunableGroup, inside, parameters_of

MODULATION = "modulation"
MODULATES = frozenset({"mod", "modulation", "adaln"})
EMBEDS = "emb"


def modulation_layers(model: nn.Module, groups: Sequence[PrunableGroup]) -> list[PrunableGroup]:
    """Return the modulation layers of a model, as calibration measures them: their input channels are the units.

    Args:
        model: A denoiser on any device.
        groups: Result of `find_groups(model)`; a layer of which a group cuts rows or columns is left to it.
    """
    cut = parameters_of(groups)
    return [
        PrunableGroup(
            f"{path}:{MODULATION}",
            path,
            MODULATION,
            module.in_features,
            1,
            consumed_by=(ParamSlice(f"{path}.weight", 1, 1),),
        )
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{path}.weight" not in cut and _modulates(model, path)
    ]


def _modulates(model: nn.Module, path: str) -> bool:
    """Tell whether a layer is that of a norm or a modulation, alone or in a sequence with its activation."""
    name = path
    while name:
        above, _, own = name.rpartition(".")
        if words(own) & MODULATES:
            return True
        parent = model.get_submodule(above)
        if not isinstance(parent, nn.Sequential):
            return bool(above) and (is_norm(parent) or "modulation" in type(parent).__name__.lower())
        name = above
    return False


def break_even(layer: nn.Linear) -> int:
    """Return the largest rank at which the low-rank form of a layer has fewer parameters than the layer."""
    inputs, outputs = layer.in_features, layer.out_features
    return (inputs * outputs - 1) // (inputs + outputs)


def ranks_that_save(
    model: nn.Module, layers: Sequence[PrunableGroup], rank: Callable[[nn.Linear], int]
) -> dict[str, int]:
    """Return by path the rank that each of some `modulation_layers` shall have, where that saves parameters."""
    found = {}
    for group in layers:
        layer = model.get_submodule(group.module)
        assert isinstance(layer, nn.Linear)
        if (asked := rank(layer)) <= break_even(layer):
            found[group.module] = asked
    return found


def repeated(model: nn.Module, groups: Sequence[PrunableGroup]) -> list[tuple[str, ...]]:
    """Return the embedders that items of a list repeat: sets of paths of modules of one class and one layout.

    Args:
        model: A denoiser on any device.
        groups: Result of `find_groups(model)`; embedders in which a group has a part are left out.
    """
    cut = parameters_of(groups)
    found = []
    for parent, items in model.named_modules():
        if not isinstance(items, nn.ModuleList):
            continue
        alike: defaultdict[Hashable, list[str]] = defaultdict(list)
        for index, item in items.named_children():
            for path in _embedders(item):
                where = f"{parent}.{index}.{path}"
                if not any(inside(name, where) for name in cut):
                    alike[path, _layout(model.get_submodule(where))].append(where)
        found += [tuple(paths) for paths in alike.values() if len(paths) > 1]
    return found


def copies(model: nn.Module, groups: Sequence[PrunableGroup]) -> tuple[tuple[str, ...], ...]:
    """Return those of the `repeated` embedders whose parameters and buffers are equal, bit for bit."""
    found = []
    for paths in repeated(model, groups):
        equal: defaultdict[Hashable, list[str]] = defaultdict(list)
        for path in paths:
            equal[_content(model.get_submodule(path))].append(path)
        found += [tuple(same) for same in equal.values() if len(same) > 1]
    return tuple(found)


def _embedders(block: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the paths of the outermost embedders of a block that have parameters."""
    for name, module in block.named_children():
        path = f"{prefix}{name}"
        if any(word.startswith(EMBEDS) for word in words(name)) or "embed" in type(module).__name__.lower():
            if next(module.parameters(), None) is not None:
                yield path
        elif not isinstance(module, nn.ModuleList):  # its items are looked at by themselves
            yield from _embedders(module, f"{path}.")


def _layout(module: nn.Module) -> Hashable:
    state = module.state_dict()
    return type(module), tuple((name, tuple(t.shape), t.dtype) for name, t in state.items())


def _content(module: nn.Module) -> Hashable:
    tensors = (t.detach().cpu().contiguous() for t in module.state_dict().values())
    return tuple(hashlib.sha256(t.flatten().view(torch.uint8).numpy().tobytes()).digest() for t in tensors)
