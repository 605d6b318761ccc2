"""Give a freshly built stock model the shapes of a pruned one; trust nothing in the config entry.

The entry ``_structured_pruning`` of a ``config.json`` is untrusted input: types, paths, ranges and sizes are
checked against the stock model before a module is touched; nothing outside the module tree is resolved, no
shape may exceed the stock one, and nothing in the entry is ever executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pruning.errors import PruningError, shown
from pruning.groups import KINDS, discover
from pruning.groups.words import CONVOLUTIONS, LAYERS
from pruning.surgery.check import outermost
from pruning.surgery.identity import IdentityBlock, replace_by_identity
from pruning.surgery.inputs import kept_inputs, narrow_inputs
from pruning.surgery.smaller_forms import check_entry, rebuild
from pruning.types import LENGTH, PRUNING_KEY, PrunableGroup, lies_in, set_size, size_of, slices_of

FORMAT_VERSION = 1

LOADED_AS = {"Transformer2DModel": ("DiTTransformer2DModel", "PixArtTransformer2DModel")}
"""Class in a checkpoint -> classes as which diffusers loads it, since it has split that one up."""


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
    groups = list(discover(model, None if removed_blocks else {*KINDS} - {"blocks"}))
    removable = {group.module: group for group in groups if group.kind == "blocks"}
    gone = []
    if len(outermost(removed_blocks)) < len(removed_blocks) or len({*removed_blocks}) < len(removed_blocks):
        raise PruningError(
            f"{PRUNING_KEY}.removed_blocks: a block is named twice, or lies in another of them"
        )
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
        _check_module(path, tree[path], record, groups)
    for group in groups:
        if group.narrowed and kept_inputs(tree[group.module]) is None:
            _check_narrowed(group, modules.get(group.module, {}), tree[group.module])
    _check_agreement(model, groups, modules, removed_blocks)
    check_entry(model, entry, [*removed_blocks, *_removed_items(tree, modules)])
    for path in gone:
        replace_by_identity(model, removable[path])
    for path, record in modules.items():
        for name, value in record.get("attributes", {}).items():
            set_size(tree[path], name, value)
        if "inputs" in record and kept_inputs(tree[path]) is None:
            owner = next(group for group in groups if group.module == path and group.narrowed)
            narrow_inputs(tree[path], owner, record["inputs"]["kept"])
        for name, shape in record.get("parameters", {}).items():
            _resize(tree[path], name, shape)
        sync_sizes(tree[path])
    rebuild(model, entry)
    return model


def sync_sizes(module: nn.Module) -> None:
    """Bring the size attributes of a leaf module in line with its weight."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, CONVOLUTIONS):
        module.out_channels = weight.shape[0]
        if module.groups > 1 and weight.shape[1] == 1:  # depthwise: every channel is a group of its own
            module.groups = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(getattr(module, "normalized_shape", None), tuple):
        setattr(module, "normalized_shape", tuple(weight.shape))  # noqa: B010 (RMSNorm and LayerNorm have no common type)
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
    name = type(model).__name__
    made_for = entry.get("class_name", name)
    if made_for != name and not (isinstance(made_for, str) and name in LOADED_AS.get(made_for, ())):
        raise PruningError(f"{PRUNING_KEY}.class_name: made for {made_for!r}, not for {name}")
    modules, removed = entry.get("modules"), entry.get("removed_blocks")
    if not isinstance(modules, Mapping) or not all(isinstance(p, str) for p in modules):
        raise PruningError(f"{PRUNING_KEY}.modules: must map module paths to records, found {shown(modules)}")
    if not isinstance(removed, (list, tuple)) or not all(isinstance(p, str) for p in removed):
        raise PruningError(
            f"{PRUNING_KEY}.removed_blocks: must be a list of module paths, found {shown(removed)}"
        )
    return modules, list(removed)


def _check_module(path: str, module: nn.Module, record: Any, groups: Sequence[PrunableGroup]) -> None:
    place = f"{PRUNING_KEY}.modules[{path!r}]"
    if not isinstance(record, Mapping) or not set(record) <= {"attributes", "parameters", "inputs"}:
        raise PruningError(
            f"{place}: must hold 'attributes', 'parameters' and 'inputs' only, found {shown(record)}"
        )
    attributes, parameters = record.get("attributes", {}), record.get("parameters", {})
    if not isinstance(attributes, Mapping) or not isinstance(parameters, Mapping):
        raise PruningError(f"{place}: 'attributes' and 'parameters' must be mappings")
    may_fall = {a.name for group in groups for a in group.attributes if a.module == path}
    for name, value in attributes.items():
        known = isinstance(name, str) and (name in may_fall or name in vars(module))
        stock = size_of(module, name) if known else None
        if stock is None or (name not in may_fall and value != stock):
            raise PruningError(
                f"{place}: {shown(name)} is not a size of {type(module).__name__} that pruning changes"
            )
        if type(value) is not int or not 1 <= value <= stock:
            raise PruningError(f"{place}.{name}: must be an integer in 1..{stock}, found {shown(value)}")
    if "inputs" in record:
        _check_inputs(f"{place}.inputs", path, module, record, groups)
    own = dict(module.named_parameters(recurse=False))
    owned = {(part.path, part.dim) for group in groups for part in slices_of(group)}
    for name, shape in parameters.items():
        _check_shape(f"{place}.{name}", module, own, name, shape, parameters)
        for dim, (new, old) in enumerate(zip(shape, own[name].shape if name in own else (), strict=False)):
            if new < old and (f"{path}.{name}" if path else name, dim) not in owned:
                raise PruningError(
                    f"{place}.{name}: dimension {dim} fell from {old} to {new}, and nothing that may be removed "
                    "has a part in it"
                )


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
        raise PruningError(f"{place}: a shape is a list of positive integers, found {shown(shape)}")
    if name in own:
        stock = tuple(own[name].shape)
        if len(shape) != len(stock) or any(new > old for new, old in zip(shape, stock, strict=True)):
            raise PruningError(
                f"{place}: shape {shown(shape)} does not fit into the stock shape {list(stock)}"
            )
        return
    weight = recorded.get("weight")
    may_gain_bias = name == "bias" and isinstance(module, LAYERS) and module.bias is None
    if not may_gain_bias or not isinstance(weight, (list, tuple)) or list(shape) != list(weight[:1]):
        raise PruningError(f"{place}: {type(module).__name__} has no such parameter and cannot gain it")


def _check_inputs(
    place: str, path: str, module: nn.Module, record: Mapping[str, Any], groups: Sequence[PrunableGroup]
) -> None:
    """Check which entries of its arguments a module keeps."""
    found, before = record["inputs"], kept_inputs(module)
    owner = next((group for group in groups if group.module == path and group.narrowed), None)
    if before is None and owner is None:
        raise PruningError(f"{place}: no argument of {type(module).__name__} has entries for each unit")
    units = before.units if before else owner.num_units if owner else 0
    kept = found.get("kept") if isinstance(found, Mapping) else None
    whole = isinstance(kept, (list, tuple)) and all(type(unit) is int for unit in kept)
    if not whole or not kept or sorted(set(kept)) != list(kept) or kept[0] < 0 or kept[-1] >= units:
        raise PruningError(
            f"{place}.kept: must be sorted distinct units in 0..{units - 1}, found {shown(kept)}"
        )
    if before is not None and before.kept != tuple(kept):
        raise PruningError(f"{place}.kept: the module keeps {list(before.kept)} already, not {shown(kept)}")
    if set(found) != {"kept", "units"} or found["units"] != units:
        raise PruningError(f"{place}: must hold 'kept' and 'units', which is {units}, found {shown(found)}")
    if owner is not None and before is None:
        heads = next(a for a in owner.attributes if a.module == path)
        left = record.get("attributes", {}).get(heads.name, size_of(module, heads.name))
        if left != heads.per_unit * len(kept):
            raise PruningError(
                f"{place}.kept: {len(kept)} units stay, but {heads.name} is {shown(left)}; expected "
                f"{heads.per_unit * len(kept)}"
            )


def _check_narrowed(group: PrunableGroup, record: Mapping[str, Any], module: nn.Module) -> None:
    """A module that is given entries for all its units must say which it keeps, where units went."""
    size = next(a for a in group.attributes if a.module == group.module)
    stock = size_of(module, size.name)
    if record.get("attributes", {}).get(size.name, stock) != stock and "inputs" not in record:
        raise PruningError(
            f"{PRUNING_KEY}.modules[{group.module!r}]: {size.name} fell, but 'inputs' does not say which units stay"
        )


def _check_agreement(
    model: nn.Module, groups: Sequence[PrunableGroup], modules: Mapping[str, Any], gone: list[str]
) -> None:
    """All slices and sizes of a group, outside removed blocks, must have lost the same number of units.

    Where several groups share a dimension of a parameter (a fused projection), it must have lost what they lost
    together.
    """
    groups = [group for group in groups if group.kind != "blocks" and not lies_in(group.module, gone)]
    owners: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups:
        for part in slices_of(group):
            if lies_in(part.path, gone):
                continue
            sizes = owners.setdefault((part.path, part.dim), {})
            sizes[group.name] = sizes.get(group.name, 0) + part.unit_size
    lost: dict[str, tuple[str, float]] = {}

    def agree(name: str, place: str, units: float) -> None:
        reference, expected = lost.setdefault(name, (place, units))
        if units != expected:
            raise PruningError(
                f"{PRUNING_KEY}.modules: the shapes of {name!r} contradict each other: {place} lost "
                f"{units:g} units, {reference} lost {expected:g}"
            )

    for group in groups:
        for attribute in group.attributes:
            if lies_in(attribute.module, gone):
                continue
            stock = size_of(model.get_submodule(attribute.module), attribute.name)
            assert stock is not None
            new = modules.get(attribute.module, {}).get("attributes", {}).get(attribute.name, stock)
            place = f"{attribute.module}.{attribute.name}"
            agree(group.name, place, (stock - new) / attribute.per_unit)
    for (path, dim), sizes in owners.items():
        if len(sizes) == 1:
            ((name, size),) = sizes.items()
            agree(name, path, _rows_lost(model, modules, path, dim) / size)
    for (path, dim), sizes in owners.items():
        found = _rows_lost(model, modules, path, dim)
        unknown = [name for name in sizes if name not in lost]
        if len(unknown) == 1:  # what the others leave is this one's
            others = sum(lost[name][1] * size for name, size in sizes.items() if name in lost)
            agree(unknown[0], path, (found - others) / sizes[unknown[0]])
        expected = sum(lost[name][1] * size for name, size in sizes.items() if name in lost)
        if found != expected:
            raise PruningError(
                f"{PRUNING_KEY}.modules: {path} lost {found:g} of dimension {dim}, but {' and '.join(sizes)} lost "
                f"{expected:g}"
            )

    for group in groups:
        left = group.num_units - lost.get(group.name, ("", 0))[1]
        if left < group.min_units:
            raise PruningError(
                f"{PRUNING_KEY}.modules: {left:g} of {group.num_units} units of {group.name!r} are left, and at least "
                f"{group.min_units} must be"
            )


def _removed_items(tree: Mapping[str, nn.Module], modules: Mapping[str, Any]) -> list[str]:
    """Return the paths of the items that lists lose."""
    return [
        f"{path}.{index}"
        for path, record in modules.items()
        if isinstance(items := tree[path], nn.ModuleList)
        for index in range(record.get("attributes", {}).get(LENGTH, len(items)), len(items))
    ]


def _rows_lost(model: nn.Module, modules: Mapping[str, Any], path: str, dim: int) -> int:
    owner, _, name = path.rpartition(".")
    stock = model.get_parameter(path).shape
    return stock[dim] - modules.get(owner, {}).get("parameters", {}).get(name, stock)[dim]


def _resize(module: nn.Module, name: str, shape: list[int]) -> None:
    old = getattr(module, name)
    if old is not None and list(old.shape) == list(shape):
        return
    like = module.weight if old is None else old
    new = torch.empty(shape, dtype=like.dtype, device=like.device)  # type: ignore[union-attr]
    setattr(module, name, nn.Parameter(new, requires_grad=bool(like.requires_grad)))  # type: ignore[union-attr]
