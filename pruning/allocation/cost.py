"""Predicted multiply-accumulates (MACs) and parameters of any plan, from shapes alone.

One forward pass with meta tensors records how often each weight is applied, and the products that each module computes
besides (those of attention, of stacked experts); everything after that is arithmetic. The tokens of removed experts are
counted with those that stay. `eval.cost` measures the same on the real model; a test holds the two within 0.1 %.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.allocation.routed import Routed, items_of, routed
from pruning.allocation.tracing import Constants, Tracing, autocast_on_meta
from pruning.errors import PruningError
from pruning.groups.experts import EXPERTS
from pruning.groups.words import LAYERS
from pruning.models.outputs import with_tuple
from pruning.types import PrunableGroup, PruningPlan, slices_of


@dataclass(frozen=True)
class CostModel:
    """What a plan costs for one call on the traced inputs.

    Attributes:
        shapes: Dense shape of every parameter, by path.
        applications: How often each element of a weight is multiplied in one call, by parameter path.
        between: MACs of a module's own products, such as ``QKᵀ`` and ``AV``, by its path ("" is the whole model).
        groups: All groups of the model.
    """

    shapes: Mapping[str, tuple[int, ...]]
    applications: Mapping[str, int]
    between: Mapping[str, int]
    groups: tuple[PrunableGroup, ...]
    _cut: Mapping[str, list[tuple[PrunableGroup, int, int]]] = field(repr=False)
    _scaled: Mapping[str, PrunableGroup] = field(repr=False)
    _routed: Mapping[str, Routed] = field(repr=False)
    _items: Mapping[str, tuple[Routed, int]] = field(repr=False)

    @classmethod
    def trace(cls, model: nn.Module, call: Mapping[str, Any], groups: Sequence[PrunableGroup]) -> CostModel:
        """Record one call of `model`; no weight is read, copied or moved.

        Args:
            model: A denoiser on any device.
            call: Arguments of one call, e.g. from `models.example_call`; only their shapes matter.
            groups: Result of `find_groups(model)` with all kinds that plans will name.
        """
        counts = _counted(model, call)
        layers = routed(model, groups, counts.applications, counts.lengths)
        return cls._of(model, groups, counts.applications, counts.own_products(model), layers)

    @classmethod
    def untraced(cls, model: nn.Module, groups: Sequence[PrunableGroup]) -> CostModel:
        """Return the costs of a model of which no call is known: all MACs are 0."""
        return cls._of(model, groups, {}, {}, routed(model, groups, {}, {}))

    @classmethod
    def _of(
        cls,
        model: nn.Module,
        groups: Sequence[PrunableGroup],
        applications: Mapping[str, int],
        between: Mapping[str, int],
        layers: Sequence[Routed],
    ) -> CostModel:
        cut = defaultdict(list)
        for group in groups:
            for part in slices_of(group):
                cut[part.path].append((group, part.dim, part.unit_size))
        return cls(
            shapes={name: tuple(p.shape) for name, p in model.named_parameters()},
            applications=dict(applications),
            between=dict(between),
            groups=tuple(groups),
            _cut=dict(cut),
            _scaled=dict(_scaled_by(model, groups, between, {layer.experts for layer in layers})),
            _routed={layer.experts: layer for layer in layers},
            _items=items_of(dict(model.named_parameters()), layers),
        )

    def macs(self, plan: PruningPlan | None = None) -> int:
        """Return the MACs of one call under `plan` (dense if None)."""
        plan = (plan or PruningPlan()).completed(self.groups)
        kept, low = self._kept(plan), _low(plan)
        total: float = 0
        for path, times in self.applications.items():
            if self._stays(path, plan):
                times = self._times(path, kept) if path in self._items else times
                total += self._elements(path, kept, low) * times
        for path, macs in self.between.items():
            if not plan.removes(path):
                group, layer = self._scaled.get(path), self._routed.get(path)
                share = layer.share(kept[layer.group.name]) if layer else 1.0
                total += round(share * macs * (kept[group.name] / group.num_units if group else 1))
        return round(total)

    def params(self, plan: PruningPlan | None = None) -> int:
        """Return the number of parameters under `plan` (dense if None), added biases left out."""
        plan = (plan or PruningPlan()).completed(self.groups)
        kept, low = self._kept(plan), _low(plan)
        plan = replace(plan, removed_blocks=(*plan.removed_blocks, *plan.served_by()))
        return sum(self._elements(path, kept, low) for path in self.shapes if self._stays(path, plan))

    def unit_costs(self, measure: str) -> dict[str, float]:
        """Return what one unit of each group costs in the dense model, as ``"macs"`` or ``"params"``.

        For a block: what goes when the whole block goes. The cost of a group is linear in its units, but for
        weights that two groups cut, one along each dimension.
        """
        assert measure in ("macs", "params")
        costs = {}
        total = {"macs": self.macs, "params": self.params}[measure]
        dense = total()
        scaled: defaultdict[str, int] = defaultdict(int)
        for path, group in self._scaled.items():
            scaled[group.name] += self.between[path]
        for group in self.groups:
            if group.kind == "blocks":
                costs[group.name] = float(dense - total(PruningPlan(removed_blocks=(group.module,))))
                continue
            cost = 0.0
            for part in slices_of(group):
                shape = self.shapes[part.path]
                times = self.applications.get(part.path, 0) if measure == "macs" else 1
                cost += math.prod(shape) / shape[part.dim] * part.unit_size * times
            if measure == "params" and group.lists:
                items = [path for path, (layer, _) in self._items.items() if layer.group is group]
                cost += sum(math.prod(self.shapes[path]) for path in items) / group.num_units
            if measure == "macs":
                cost += scaled[group.name] / group.num_units
            costs[group.name] = cost
        return costs

    def _stays(self, path: str, plan: PruningPlan) -> bool:
        """Tell whether a parameter is there under a plan, if only a part of it."""
        if path in self._items:
            layer, unit = self._items[path]
            if unit not in plan.kept.get(layer.group.name, (unit,)):
                return False
        return not plan.removes(path)

    def _times(self, path: str, kept: Mapping[str, int]) -> float:
        """Return how often a weight of an expert is applied if so many units are kept."""
        layer, _ = self._items[path]
        experts = kept[layer.group.name]
        return layer.applications * layer.share(experts) / experts

    def _kept(self, plan: PruningPlan) -> dict[str, int]:
        return {g.name: len(plan.kept[g.name]) if g.name in plan.kept else g.num_units for g in self.groups}

    def _elements(self, path: str, kept: Mapping[str, int], low: Mapping[str, int]) -> int:
        """Return how many elements a parameter has; of a layer in low-rank form, those of both its weights."""
        shape = list(self.shapes[path])
        if path in low:
            return low[path] * sum(shape)
        for group, dim, unit_size in self._cut.get(path, ()):
            shape[dim] -= (group.num_units - kept[group.name]) * unit_size
        return math.prod(shape)


def _low(plan: PruningPlan) -> dict[str, int]:
    """Return the ranks of weights by their paths."""
    return {f"{path}.weight": rank for path, rank in plan.ranks.items()}


class _Counts:
    """What a run of a model costs, by module; the model keeps its hooks.

    Attributes:
        tracing: Counts floating point operations while it is entered.
        applications: How often each weight is applied, by parameter path.
        lengths: Entries along the last but one dimension of what a linear layer puts out, by its path.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tracing = Tracing()
        self.applications: defaultdict[str, int] = defaultdict(int)
        self.lengths: dict[str, int] = {}
        self._flops: defaultdict[str, int] = defaultdict(int)
        self._open, self._seen = [""], 0
        for path, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, p=path: self._enter(p))
            module.register_forward_hook(self._leave(path))

    def own_products(self, model: nn.Module) -> dict[str, int]:
        """Return the MACs that each module computes itself, without those of weights that are counted already."""
        self._settle()
        for path, module in model.named_modules():
            if isinstance(module, LAYERS):
                self._flops[path] -= 2 * module.weight.numel() * self.applications[f"{path}.weight"]
        return {path: flops // 2 for path, flops in self._flops.items() if flops}

    def _settle(self) -> None:
        """Book what was computed since the last time on the module that is running."""
        total = self.tracing.flops
        self._flops[self._open[-1]] += total - self._seen
        self._seen = total

    def _enter(self, path: str) -> None:
        self._settle()
        self._open.append(path)

    def _leave(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self._settle()
            self._open.pop()
            if isinstance(module, LAYERS):
                channels = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1]
                self.applications[f"{path}.weight"] += output.numel() // channels
            if isinstance(module, nn.Linear) and output.ndim > 1:
                self.lengths[path] = output.shape[-2]

        return hook


@torch.no_grad()
def _counted(model: nn.Module, call: Mapping[str, Any]) -> _Counts:
    """Run one call and count: on the meta device, or where that cannot be, since values decide, as the model is."""
    call = with_tuple(model, call)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    try:
        shell, counts = _shell(model, tensors)
        arguments = counts.tracing.to_meta(call)
        with counts.tracing, Constants(counts.tracing), autocast_on_meta():
            torch.func.functional_call(shell, meta, (), arguments)
        return counts
    except Exception as error:  # a model may fail in any way on tensors that hold nothing
        if any(tensor.is_meta for tensor in tensors.values()):
            raise PruningError(
                f"the cost of {type(model).__name__} cannot be traced without weights "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); load the model with its weights"
            ) from error
    shell, counts = _shell(model, tensors)
    with counts.tracing:
        torch.func.functional_call(shell, {name: t.detach() for name, t in tensors.items()}, (), dict(call))
    return counts


def _shell(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, _Counts]:
    """Return a copy of `model` that shares its tensors and forgets what a run caches, and the counts of its runs."""
    shell = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors.values()})
    return shell, _Counts(shell)


def _scaled_by(
    model: nn.Module, groups: Sequence[PrunableGroup], between: Mapping[str, int], experts: set[str]
) -> Iterator[tuple[str, PrunableGroup]]:
    """Yield the paths whose own products are in proportion to the units of a group, and the group.

    `experts` are the paths of what holds them: its products do not fall with their number.
    """
    owners: dict[str, PrunableGroup] = {}
    for group in groups:
        if group.kind == "attention_heads":
            owners |= dict.fromkeys((group.module, *(a.module for a in group.attributes)), group)
        for part in slices_of(group):
            owner = part.path.rpartition(".")[0]
            if group.kind == EXPERTS and owner in experts:
                continue
            if not isinstance(model.get_submodule(owner), LAYERS):
                owners.setdefault(owner, group)
    for path in between:
        above = path
        while above and above not in owners:
            above = above.rpartition(".")[0]
        if above in owners and not (above != path and isinstance(model.get_submodule(path), LAYERS)):
            yield path, owners[above]
