"""Give a freshly built stock model the shapes of a pruned one; trust nothing in the config entry.

The entry ``_structured_pruning`` of a ``config.json`` is untrusted input: types, paths, ranges and sizes are
checked against the stock model before a module is touched; nothing outside the module tree is resolved, no
shape may exceed the stock one, and nothing in the entry is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruning.errors import PruningError
from pruning.groups import discover
from pruning.surgery.identity import IdentityBlock, replace_by_identity
from pruning.types import PRUNING_KEY, PrunableGroup, inside, slices_of

FORMAT_VERSION = 1
ATTRIBUTES = ("heads", "inner_dim", "inner_kv_dim", "sliceable_head_dim", "num_groups")


def reshape(model: nn.Module, entry: Any) -> nn.Module:
    """Shrink the stock `model` in place to the shapes that `entry` records; doing it twice changes nothing.

    New parameters hold no values (`torch.empty`); the caller loads them.

    Args:
        model: Built from the same config, on any device; the meta device costs no memory.
        entry: Value of ``config["_structured_pruning"]``.

    Raises:
        PruningError: Naming the entry's first fault and where it is.
    """
    modules, removed_blocks = _check_entry(model, entry)
    tree = dict(model.named_modules())
    removable = {g.module: g for g in discover(model) if g.kind == "blocks"} if removed_blocks else {}
    gone = []
    for path in removed_blocks:
        if isinstance(tree.get(path), IdentityBlock):
            continue
        if path not in removable:
            raise PruningError(
                f"{PRUNING_KEY}.removed_blocks: {path!r} is not a removable block of this model"
            )
        gone.append(path)
    for path, record in modules.items():
        if path not in tree:
            raise PruningError(f"{PRUNING_KEY}.modules: {path!r} is not a module of {type(model).__name__}")
        _check_module(path, tree[path], record)
    _check_agreement(model, modules, removed_blocks)
    for path in gone:
        replace_by_identity(model, removable[path])
    for path, record in modules.items():
        for name, value in record.get("attributes", {}).items():
            setattr(tree[path], name, value)
        for name, shape in record.get("parameters", {}).items():
            _resize(tree[path], name, shape)
        sync_sizes(tree[path])
    return model


def sync_sizes(module: nn.Module) -> None:
    """Bring the size attributes of a leaf module in line with its weight."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
    elif hasattr(module, "dim"):  # diffusers' RMSNorm
        module.dim = weight.shape


def _check_entry(model: nn.Module, entry: Any) -> tuple[Mapping[str, Any], list[str]]:
    if not isinstance(entry, Mapping):
        raise PruningError(f"{PRUNING_KEY}: must be a mapping, found {type(entry).__name__}")
    version = entry.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise PruningError(
            f"{PRUNING_KEY}.format_version: {version!r} is unknown, this version of sinkprune reads "
            f"{FORMAT_VERSION}; upgrade sinkprune or export the checkpoint again"
        )
    made_for = entry.get("class_name", type(model).__name__)
    if made_for != type(model).__name__:
        raise PruningError(f"{PRUNING_KEY}.class_name: made for {made_for!r}, not for {type(model).__name__}")
    modules, removed = entry.get("modules"), entry.get("removed_blocks")
    if not isinstance(modules, Mapping) or not all(isinstance(p, str) for p in modules):
        raise PruningError(
            f"{PRUNING_KEY}.modules: must map module paths to records, found {_short(modules)}"
        )
    if not isinstance(removed, (list, tuple)) or not all(isinstance(p, str) for p in removed):
        raise PruningError(
            f"{PRUNING_KEY}.removed_blocks: must be a list of module paths, found {_short(removed)}"
        )
    return modules, list(removed)


def _check_module(path: str, module: nn.Module, record: Any) -> None:
    place = f"{PRUNING_KEY}.modules[{path!r}]"
    if not isinstance(record, Mapping) or not set(record) <= {"attributes", "parameters"}:
        raise PruningError(f"{place}: must hold 'attributes' and 'parameters' only, found {_short(record)}")
    attributes, parameters = record.get("attributes", {}), record.get("parameters", {})
    if not isinstance(attributes, Mapping) or not isinstance(parameters, Mapping):
        raise PruningError(f"{place}: 'attributes' and 'parameters' must be mappings")
    for name, value in attributes.items():
        stock = getattr(module, name, None) if name in ATTRIBUTES else None
        if type(stock) is not int:
            raise PruningError(f"{place}: {name!r} is not an integer attribute of {type(module).__name__}")
        if type(value) is not int or not 1 <= value <= stock:
            raise PruningError(f"{place}.{name}: must be an integer in 1..{stock}, found {_short(value)}")
    own = dict(module.named_parameters(recurse=False))
    for name, shape in parameters.items():
        _check_shape(f"{place}.{name}", module, own, name, shape, parameters)


def _check_shape(
    place: str,
    module: nn.Module,
    own: Mapping[str, nn.Parameter],
    name: str,
    shape: Any,
    recorded: Mapping[str, Any],
) -> None:
    sizes = isinstance(shape, (list, tuple)) and all(type(size) is int and size >= 1 for size in shape)
    if not sizes:
        raise PruningError(f"{place}: a shape is a list of positive integers, found {_short(shape)}")
    if name in own:
        stock = tuple(own[name].shape)
        if len(shape) != len(stock) or any(new > old for new, old in zip(shape, stock, strict=True)):
            raise PruningError(
                f"{place}: shape {_short(shape)} does not fit into the stock shape {list(stock)}"
            )
        return
    weight = recorded.get("weight")
    may_gain_bias = name == "bias" and isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is None
    if not may_gain_bias or not isinstance(weight, (list, tuple)) or list(shape) != list(weight[:1]):
        raise PruningError(f"{place}: {type(module).__name__} has no such parameter and cannot gain it")


def _check_agreement(model: nn.Module, modules: Mapping[str, Any], gone: list[str]) -> None:
    """All slices and integers of a group must have lost the same number of units."""
    for group in discover(model):
        if group.kind == "blocks" or any(inside(group.module, block) for block in gone):
            continue
        lost = _units_lost(model, modules, group)
        (reference, expected), *others = lost.items()
        for place, units in others:
            if units != expected:
                raise PruningError(
                    f"{PRUNING_KEY}.modules: the shapes of {group.name!r} contradict each other: {place} lost "
                    f"{units:g} units, {reference} lost {expected:g}"
                )


def _units_lost(model: nn.Module, modules: Mapping[str, Any], group: PrunableGroup) -> dict[str, float]:
    """Return how many units each part of `group` lost by the record, keyed by the part's path."""
    per_unit: dict[tuple[str, int], int] = {}
    for part in slices_of(group):
        per_unit[part.path, part.dim] = per_unit.get((part.path, part.dim), 0) + part.unit_size
    lost = {}
    for (path, dim), size in per_unit.items():
        owner, _, name = path.rpartition(".")
        stock = model.get_parameter(path).shape
        new = modules.get(owner, {}).get("parameters", {}).get(name, stock)
        lost[path] = (stock[dim] - new[dim]) / size
    for attribute in group.attributes:
        stock = getattr(model.get_submodule(attribute.module), attribute.name)
        new = modules.get(attribute.module, {}).get("attributes", {}).get(attribute.name, stock)
        lost[f"{attribute.module}.{attribute.name}"] = (stock - new) / attribute.per_unit
    return lost


def _resize(module: nn.Module, name: str, shape: list[int]) -> None:
    old = getattr(module, name)
    if old is not None and list(old.shape) == list(shape):
        return
    like = module.weight if old is None else old
    new = torch.empty(shape, dtype=like.dtype, device=like.device)  # type: ignore[union-attr]
    setattr(module, name, nn.Parameter(new, requires_grad=bool(like.requires_grad)))  # type: ignore[union-attr]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
