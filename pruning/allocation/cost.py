"""Predicted multiply-accumulates (MACs) and parameters of any plan, from shapes alone.

One forward pass with meta tensors records how often each weight is applied and the shape of each attention
product; everything after that is arithmetic. `eval.cost` measures the same on the real model; a test holds the
two within 0.1 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pruning.types import PrunableGroup, PruningPlan, slices_of

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class CostModel:
    """What a plan costs for one call on the traced inputs.

    Attributes:
        shapes: Dense shape of every parameter, by path.
        applications: How often each element of a weight is multiplied in one call, by parameter path.
        attention: MACs of the two products ``QKᵀ`` and ``AV``, by path of the attention module.
        other: MACs that no plan changes (products outside the modules above).
        groups: All groups of the model.
    """

    shapes: Mapping[str, tuple[int, ...]]
    applications: Mapping[str, int]
    attention: Mapping[str, int]
    other: int
    groups: tuple[PrunableGroup, ...]
    _cut: Mapping[str, list[tuple[PrunableGroup, int, int]]] = field(repr=False)

    @classmethod
    def trace(cls, model: nn.Module, call: Mapping[str, Any], groups: Sequence[PrunableGroup]) -> CostModel:
        """Record one call of `model`; no weight is read, copied or moved.

        Args:
            model: A denoiser on any device.
            call: Arguments of one call, e.g. from `models.example_call`; only their shapes matter.
            groups: Result of `find_groups(model)` with all kinds that plans will name.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        meta = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), ExitStack() as stack, counter, _Recorder(model, stack) as recorder:
            torch.func.functional_call(model, meta, (), {**_to_meta(call), "return_dict": False})
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        known = sum(math.prod(shapes[path]) * times for path, times in recorder.applications.items())
        known += sum(recorder.attention.values())
        cut = defaultdict(list)
        for group in groups:
            for part in slices_of(group):
                cut[part.path].append((group, part.dim, part.unit_size))
        return cls(
            shapes=shapes,
            applications=dict(recorder.applications),
            attention=dict(recorder.attention),
            other=counter.get_total_flops() // 2 - known,
            groups=tuple(groups),
            _cut=dict(cut),
        )

    def macs(self, plan: PruningPlan | None = None) -> int:
        """Return the MACs of one call under `plan` (dense if None)."""
        plan = plan or PruningPlan()
        kept = self._kept(plan)
        total = self.other
        for path, times in self.applications.items():
            if not plan.removes(path):
                total += math.prod(self._shape(path, kept)) * times
        heads = {g.module: kept[g.name] / g.num_units for g in self.groups if g.kind == "attention_heads"}
        for path, macs in self.attention.items():
            if not plan.removes(path):
                total += round(macs * heads.get(path, 1.0))
        return total

    def params(self, plan: PruningPlan | None = None) -> int:
        """Return the number of parameters under `plan` (dense if None), added biases left out."""
        plan = plan or PruningPlan()
        kept = self._kept(plan)
        return sum(math.prod(self._shape(path, kept)) for path in self.shapes if not plan.removes(path))

    def unit_costs(self, measure: str) -> dict[str, float]:
        """Return what one unit of each group costs in the dense model, as ``"macs"`` or ``"params"``.

        For a block: what goes when the whole block goes. A weight is cut along one dimension by these groups
        (inner dimensions only), so the cost of a channel group is linear in its units.
        """
        assert measure in ("macs", "params")
        costs = {}
        for group in self.groups:
            if group.kind == "blocks":
                total = {"macs": self.macs, "params": self.params}[measure]
                costs[group.name] = float(total() - total(PruningPlan(removed_blocks=(group.module,))))
                continue
            cost = 0.0
            for part in slices_of(group):
                shape = self.shapes[part.path]
                times = self.applications.get(part.path, 0) if measure == "macs" else 1
                cost += math.prod(shape) / shape[part.dim] * part.unit_size * times
            if measure == "macs" and group.kind == "attention_heads":
                cost += self.attention.get(group.module, 0) / group.num_units
            costs[group.name] = cost
        return costs

    def _kept(self, plan: PruningPlan) -> dict[str, int]:
        return {g.name: len(plan.kept[g.name]) if g.name in plan.kept else g.num_units for g in self.groups}

    def _shape(self, path: str, kept: Mapping[str, int]) -> list[int]:
        shape = list(self.shapes[path])
        for group, dim, unit_size in self._cut.get(path, ()):
            shape[dim] -= (group.num_units - kept[group.name]) * unit_size
        return shape


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {key: _to_meta(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_meta(item) for item in value)
    return value


class _Recorder(TorchFunctionMode):
    """Counts how often weights are applied, and the attention products of each module; hooks go with the stack."""

    def __init__(self, model: nn.Module, hooks: ExitStack) -> None:
        super().__init__()
        self.applications: defaultdict[str, int] = defaultdict(int)
        self.attention: defaultdict[str, int] = defaultdict(int)
        self._open: list[str] = []
        for path, module in model.named_modules():
            if isinstance(module, WEIGHTED):
                hooks.callback(module.register_forward_hook(self._applied(f"{path}.weight")).remove)
            elif hasattr(module, "heads"):
                enter = module.register_forward_pre_hook(lambda *_, p=path: self._open.append(p))
                leave = module.register_forward_hook(lambda *_: self._open.pop() and None)
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)

    def _applied(self, path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            channels = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1]
            self.applications[path] += output.numel() // channels

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self._open:
            query, key = args[0], args[1] if len(args) > 1 else kwargs["key"]
            value = args[2] if len(args) > 2 else kwargs["value"]
            positions = math.prod(query.shape[:-1]) * key.shape[-2]  # B * H * N * M
            self.attention[self._open[-1]] += positions * (query.shape[-1] + value.shape[-1])
        return func(*args, **kwargs)
