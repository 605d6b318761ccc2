"""The reference that surgery is held to: the dense model with the removed units silenced."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from pruning.groups import find_groups
from pruning.surgery.check import check_plan, outermost
from pruning.surgery.identity import replace_by_identity
from pruning.types import PrunableGroup, PruningPlan


@torch.no_grad()
def mask_plan(
    model: nn.Module, plan: PruningPlan, groups: Sequence[PrunableGroup] | None = None
) -> nn.Module:
    """Return a copy of `model` in which removed units are zeroed where they are read and blocks do nothing.

    Shapes stay dense and no hooks are left. The copy computes what `apply_plan` computes, with one exception:
    a query/key norm *across heads* takes its statistics over the masked heads too.

    Raises:
        PruningError: If the plan does not fit the model.
    """
    groups = find_groups(model) if groups is None else groups
    check_plan(model, groups, plan)
    masked = copy.deepcopy(model)
    silence(masked, groups, plan)
    blocks = {group.module: group for group in groups if group.kind == "blocks"}
    for path in outermost(plan.removed_blocks):
        replace_by_identity(masked, blocks[path])
    return masked


@torch.no_grad()
def silence(model: nn.Module, groups: Sequence[PrunableGroup], plan: PruningPlan) -> None:
    """Zero the removed units of `model` in place where they are read; blocks stay."""
    for group, units in plan.cuts(groups).items():
        for part in group.consumed_by:
            weight = model.get_parameter(part.path)
            weight.index_fill_(part.dim, part.indices(units).to(weight.device), 0.0)
