"""Cut a model down to a plan, in place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.groups import find_groups
from pruning.groups.stages import MIDDLE, UP
from pruning.surgery.check import check_plan, removed_blocks
from pruning.surgery.config import forget, write_config
from pruning.surgery.experts import count_experts
from pruning.surgery.identity import replace_by_identity
from pruning.surgery.inputs import narrow_inputs
from pruning.surgery.lists import shifted, take_item, take_units
from pruning.surgery.reshape import FORMAT_VERSION, sync_sizes
from pruning.surgery.smaller_forms import RANKS, SHARED, Smaller, record
from pruning.surgery.stages import drop_stage, with_a_stage_less
from pruning.surgery.stock import as_stock
from pruning.surgery.storage import Cutter
from pruning.threads import side_by_side
from pruning.types import (
    LENGTH,
    PRUNING_KEY,
    ModuleAttribute,
    PrunableGroup,
    PruningPlan,
    config_of,
    inside,
    lies_in,
    set_size,
    size_of,
    slices_of,
)


def apply_plan(
    model: nn.Module, plan: PruningPlan, groups: Sequence[PrunableGroup] | None = None
) -> nn.Module:
    """Remove from `model` what `plan` does not keep, in place, and write the new shapes into its config.

    The result computes exactly what `mask_plan` of the dense model computes. Gradients of cut parameters are
    dropped; dtype, device and ``requires_grad`` stay.

    Args:
        model: Dense (or already pruned) diffusers denoiser.
        plan: What to keep.
        groups: Result of `find_groups(model)` if at hand.

    Returns:
        The same model.

    Raises:
        PruningError: If the plan does not fit the model; the model is then untouched.
    """
    return apply_with(Cutter(), model, plan, find_groups(model) if groups is None else groups)


class Cuts(Protocol):
    """What cuts parameters: `Cutter` moves their bytes, others may only note what is to be cut."""

    def cut(self, module: nn.Module, name: str, masks: dict[int, Tensor]) -> None:
        """Put a new parameter in the place of `name`: its entries along each dimension where the mask is set."""


def apply_with(
    cutter: Cuts, model: nn.Module, plan: PruningPlan, groups: Sequence[PrunableGroup]
) -> nn.Module:
    """Do what `apply_plan` does, by a `cutter`."""
    plan = plan.completed(groups)
    check_plan(model, groups, plan)
    key = _previous_key(model, plan)
    removed = plan.cuts(groups)
    touched = cut_parameters(model, removed, cutter)
    for group, units in removed.items():
        for attribute in (size for size in group.attributes if size.name != LENGTH):
            module = model.get_submodule(attribute.module)
            shrink(module, attribute, len(units))
            touched[attribute.module].add(attribute.name)
        if group.narrowed:
            hook = narrow_inputs(model.get_submodule(group.module), group, plan.kept_units(group))
            key["modules"].setdefault(group.module, {})["inputs"] = {
                "kept": list(hook.kept),
                "units": hook.units,
            }
    _record(model, key["modules"], touched)
    take_units(model, removed, key)
    smaller = Smaller(model, plan)
    _remove_blocks(model, groups, plan, key)
    count_experts(model, key)
    as_stock(model, key)
    smaller.take()
    record(model, key)
    if any(key.get(name) for name in ("modules", "removed_blocks", RANKS, SHARED)):
        write_config(model, {PRUNING_KEY: key})
    elif PRUNING_KEY in config_of(model):
        forget(model, PRUNING_KEY)
    return model


def _previous_key(model: nn.Module, plan: PruningPlan) -> dict[str, Any]:
    """Start the config entry from the one of an earlier pruning, if there is one."""
    old: Mapping[str, Any] = config_of(model).get(PRUNING_KEY) or {}
    key: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "class_name": type(model).__name__,
        "modules": {path: dict(entry) for path, entry in old.get("modules", {}).items()},
        "removed_blocks": list(old.get("removed_blocks", [])),
        "plan": plan.to_dict(),
    }
    if "plan" in old:
        key["earlier_plans"] = [*old.get("earlier_plans", []), old["plan"]]
    return key


def shrink(module: nn.Module, attribute: ModuleAttribute, units: int) -> None:
    """Let a size fall by what `units` units are of it."""
    size = size_of(module, attribute.name)
    assert size is not None
    set_size(module, attribute.name, size - attribute.per_unit * units)


def cut_parameters(
    model: nn.Module, removed: Mapping[PrunableGroup, Sequence[int]], cutter: Cuts | None = None
) -> defaultdict[str, set[str]]:
    """Cut all parameters, modules side by side; return the touched paths (with an empty set of attributes each)."""
    dropped: dict[str, dict[str, dict[int, list[Tensor]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for group, units in removed.items():
        for part in slices_of(group):
            owner, _, name = part.path.rpartition(".")
            dropped[owner][name][part.dim].append(part.indices(units))
    cutter = cutter or Cutter()
    jobs = (
        (0, partial(_cut_module, model.get_submodule(owner), own, cutter)) for owner, own in dropped.items()
    )
    for _ in side_by_side(jobs):
        pass
    return defaultdict(set, {owner: set() for owner in dropped})


def _cut_module(
    module: nn.Module, dropped: Mapping[str, Mapping[int, Sequence[Tensor]]], cutter: Cuts
) -> None:
    for name, by_dim in dropped.items():
        sizes = module.get_parameter(name).shape
        cutter.cut(module, name, {dim: _kept(sizes[dim], indices) for dim, indices in by_dim.items()})
    sync_sizes(module)


def _kept(size: int, dropped: Sequence[Tensor]) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[torch.cat(list(dropped))] = False
    return mask


def _record(model: nn.Module, modules: dict[str, Any], touched: Mapping[str, set[str]]) -> None:
    """Write integers and parameter shapes of the touched modules into the config entry."""
    for path, names in touched.items():
        module = model.get_submodule(path)
        entry = modules.setdefault(path, {})
        if names:
            attributes = {name: size_of(module, name) for name in sorted(names)}
            entry["attributes"] = {**entry.get("attributes", {}), **attributes}
        shapes = {name: list(p.shape) for name, p in module.named_parameters(recurse=False)}
        if shapes:
            entry["parameters"] = shapes


def _remove_blocks(
    model: nn.Module, groups: Sequence[PrunableGroup], plan: PruningPlan, key: dict[str, Any]
) -> None:
    """Take the removed blocks out, and bring the recorded paths and counts up to date."""
    counted: list[tuple[str, str]] = []
    spared = _spared(model, plan)
    stage = None
    for block in removed_blocks(groups, plan):
        path, how = block.module, block.removal
        assert how is not None
        if how.between is not None:
            stage = block
            continue
        key["modules"] = {p: e for p, e in key["modules"].items() if not inside(p, path)}
        key["removed_blocks"] = [p for p in key["removed_blocks"] if not inside(p, path)]
        if how.config_field is None or path == spared.get(path.rpartition(".")[0]):
            replace_by_identity(model, block)
            key["removed_blocks"].append(path)
        else:
            counted.append((path, how.config_field))
    key["removed_blocks"].sort()
    # From the last to the first, so that the indices of the blocks still to go stay true.
    for path, config_field in sorted(counted, key=lambda item: int(item[0].rsplit(".", 1)[1]), reverse=True):
        parent, _, index = path.rpartition(".")
        take_item(model, parent, int(index), key)
        write_config(model, {config_field: len(model.get_submodule(parent))})  # type: ignore[arg-type]
    if stage is not None:
        _remove_stage(model, stage, key)


def _remove_stage(model: nn.Module, stage: PrunableGroup, key: dict[str, Any]) -> None:
    """Take the innermost stages out, but for the middle, now an identity; the stages on the way up move forward."""
    gone = {*stage.paths} - {MIDDLE}
    drop_stage(model)
    write_config(model, with_a_stage_less(config_of(model)))

    key["modules"] = {shifted(p, UP, 0): entry for p, entry in key["modules"].items() if not lies_in(p, gone)}
    key["removed_blocks"] = [shifted(p, UP, 0) for p in key["removed_blocks"] if not lies_in(p, gone)]


def _spared(model: nn.Module, plan: PruningPlan) -> dict[str, str]:
    """Return, by list, the first block of each list that would end empty: an identity keeps its place.

    Not every model runs, nor is built, with a count of zero.
    """
    gone: defaultdict[str, list[str]] = defaultdict(list)
    for path in plan.removed_blocks:
        gone[path.rpartition(".")[0]].append(path)
    return {
        parent: min(paths, key=lambda path: int(path.rsplit(".", 1)[1]))
        for parent, paths in gone.items()
        if isinstance(siblings := model.get_submodule(parent), nn.ModuleList) and len(siblings) == len(paths)
    }
