"""Does this plan fit this model? Everything is checked before a parameter is touched."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pruning.errors import PruningError
from pruning.surgery.smaller_forms import check_smaller
from pruning.types import PrunableGroup, PruningPlan, config_hash, config_of, inside


def check_plan(model: nn.Module, groups: Sequence[PrunableGroup], plan: PruningPlan) -> None:
    """Raise PruningError, naming the group and the rule, unless `plan` can be applied to `model`."""
    if plan.base_hash and plan.base_hash != config_hash(config_of(model)):
        raise PruningError(
            f"plan was made for the architecture {plan.base_hash}, but this {type(model).__name__} is "
            f"{config_hash(config_of(model))}; apply it to the dense model that it was made for"
        )
    by_name = {group.name: group for group in groups}
    for name, kept in plan.kept.items():
        group = by_name.get(name)
        if group is None or group.kind == "blocks":
            raise PruningError(
                f"plan keeps units of {name!r}, which is not a group of channels in this model"
            )
        if not kept:
            raise PruningError(
                f"plan keeps no unit of {name!r}; a group keeps at least one, or its whole block is removed"
            )
        if len(kept) < group.min_units:
            raise PruningError(
                f"plan keeps {len(kept)} of {group.num_units} units of {name!r}, whose router sends each token to "
                f"{group.min_units} of them; keep at least {group.min_units}"
            )
        if list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= group.num_units:
            raise PruningError(
                f"plan: kept units of {name!r} must be distinct and in 0..{group.num_units - 1}: {kept}"
            )
    removable = {path for group in groups if group.kind == "blocks" for path in group.paths}
    for path in plan.removed_blocks:
        if path not in removable:
            raise PruningError(
                f"plan removes the block {path!r}, which is not a removable block of this model"
            )
    check_smaller(model, groups, plan)


def removed_blocks(groups: Sequence[PrunableGroup], plan: PruningPlan) -> list[PrunableGroup]:
    """Return the blocks that a plan removes, without those inside others; whole stages, which move others, last."""
    found = {group.module: group for group in groups if group.kind == "blocks"}
    blocks = [found[path] for path in outermost(plan.removed_blocks) if path in found]
    return sorted(blocks, key=lambda block: block.removal is not None and block.removal.between is not None)


def outermost(paths: Sequence[str]) -> list[str]:
    """Drop the paths that lie inside another of the paths; keep the order."""
    return [p for p in paths if not any(p != q and inside(p, q) for q in paths)]
