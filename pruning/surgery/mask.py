"""The reference that surgery is held to: the dense model with the removed units silenced."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruning.groups import find_groups
from pruning.groups.experts import EXPERTS
from pruning.groups.words import is_norm
from pruning.surgery.check import check_plan, removed_blocks
from pruning.surgery.cut import cut_parameters, shrink
from pruning.surgery.experts import bar
from pruning.surgery.low_rank import factorise
from pruning.surgery.stages import take_out
from pruning.types import PrunableGroup, PruningPlan


@torch.no_grad()
def mask_plan(
    model: nn.Module, plan: PruningPlan, groups: Sequence[PrunableGroup] | None = None
) -> nn.Module:
    """Return a copy of `model` in which removed units are zeroed where they are read and blocks do nothing.

    Shapes stay dense and no hooks are left. Norms whose statistics go over several units (query/key norms across
    heads) take them over the kept ones, and routers choose among the kept experts. A layer that is to take a low-rank
    form has the weight of that form, a module that another is to serve the weights of the other. The copy computes what
    `apply_plan` computes.

    Raises:
        PruningError: If the plan does not fit the model.
    """
    groups = find_groups(model) if groups is None else groups
    plan = plan.completed(groups)
    check_plan(model, groups, plan)
    masked = copy.deepcopy(model)
    silence(masked, groups, plan)
    for group, units in plan.cuts(groups).items():
        _restrict_norms(masked, group, units)
        if group.kind == EXPERTS:
            bar(masked, group, units)
    for path, rank in plan.ranks.items():
        layer = masked.get_submodule(path)
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(factorise(layer, rank).weight)
    for path, owner in plan.served_by().items():
        masked.get_submodule(path).load_state_dict(masked.get_submodule(owner).state_dict())
    for block in removed_blocks(groups, plan):
        take_out(masked, block)
    return masked


@torch.no_grad()
def silence(model: nn.Module, groups: Sequence[PrunableGroup], plan: PruningPlan) -> None:
    """Zero the removed units of `model` in place where they are read; blocks stay."""
    for group, units in plan.cuts(groups).items():
        for part in group.consumed_by:
            weight = model.get_parameter(part.path)
            weight.index_fill_(part.dim, part.indices(units).to(weight.device), 0.0)


class RestrictedNorm(nn.Module):
    """A norm over some of its channels; the others come out as zero.

    Args:
        norm: The norm of the kept channels.
        kept: Which channels these are, int64.
        axis: Dimension of the channels.
    """

    def __init__(self, norm: nn.Module, kept: Tensor, axis: int) -> None:
        super().__init__()
        self.norm, self.axis = norm, axis
        self.kept: Tensor
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the normed channels in their places."""
        normed = self.norm(x.index_select(self.axis, self.kept), *args, **kwargs)
        return torch.zeros_like(x, dtype=normed.dtype).index_copy(self.axis, self.kept, normed)


def _restrict_norms(model: nn.Module, group: PrunableGroup, units: Sequence[int]) -> None:
    """Let the norms of a group go over its kept channels."""
    for path, unit_size in _norm_rows(group).items():
        norm = model.get_submodule(path)
        if not is_norm(norm) or next(norm.children(), None) is not None:
            continue  # an adaptive norm goes over whole norm groups, of which all or nothing is kept
        kept = torch.ones(group.num_units, dtype=torch.bool)
        kept[list(units)] = False
        index = kept.repeat_interleave(unit_size).nonzero().flatten()
        around = nn.Module()
        around.norm = copy.deepcopy(norm)
        own = [
            replace(part, path=f"norm.{part.path.rpartition('.')[2]}")
            for part in group.produced_by
            if part.path.rpartition(".")[0] == path
        ]
        cut_parameters(around, {replace(group, produced_by=tuple(own), consumed_by=()): units})
        for size in group.attributes:
            if size.module == path:
                shrink(around.norm, size, len(units))
        device = next((p.device for p in norm.parameters()), index.device)
        axis = 1 if isinstance(norm, nn.GroupNorm) else -1
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, RestrictedNorm(around.norm, index.to(device), axis))


def _norm_rows(group: PrunableGroup) -> dict[str, int]:
    """Return paths of modules whose parameters or shape are cut with a group, and the channels of a unit there."""
    rows = {part.path.rpartition(".")[0]: part.unit_size for part in group.produced_by}
    shapes = {a.module: a.per_unit for a in group.attributes if a.name == "normalized_shape"}
    return {**rows, **shapes}
