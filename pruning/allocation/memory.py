"""The peak of memory of a call: weights, and what tensors are alive at the moment when they are most.

A call is run on tensors without values (`torch.utils._python_dispatch` over PyTorch's fake tensors, which know shape,
type and device) and each storage that an operator makes is followed until it is dropped. A second run with groups cut
says which moments depend on which groups; tensors inside a layer are in proportion to its units, so that two points
are enough. Scratch memory that a kernel takes by itself, and the rounding of an allocator, are not seen.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pruning.allocation.cost import CostModel
from pruning.allocation.costs import Sum
from pruning.errors import PruningError
from pruning.models.outputs import with_tuple
from pruning.types import PrunableGroup, PruningPlan, lies_in

SIZES = np.linspace(0.0, 1.0, 9)
"""Shares of the units at which moments are compared: one that is nowhere the largest is left out."""


@dataclass(frozen=True)
class Moment:
    """A moment of a call: what is alive, and the path of the module that runs."""

    live: int
    path: str


class _Timeline(TorchDispatchMode):
    """Notes what is alive after each operator that makes something; storages from outside do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Moment] = []
        self.open = [""]
        self._live = 0
        self._known: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._known.update(_storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        made = [storage for storage in _storages(result) if storage not in self._known]
        for storage in made:
            if storage not in self._known:
                self._known.add(storage)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._drop, storage.nbytes())
        if made:
            self.moments.append(Moment(self._live, self.open[-1]))
        return result

    def _drop(self, size: int) -> None:
        self._live -= size


def _storages(tree: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@torch.no_grad()
def moments_of(
    model: nn.Module, call: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device | str
) -> list[Moment]:
    """Run one call of a model on tensors without values, and return its moments.

    Args:
        model: On any device, the meta device included; no weight is read.
        call: Arguments of the call; only shapes and types matter.
        dtype: Type of the weights, and of the arguments that are in the type of the model's weights.
        device: Where it will run: which kernels are taken depends on it.

    Raises:
        PruningError: If values decide what the model computes.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    shell = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors.values()})
    timeline = _Timeline()
    for path, module in shell.named_modules():
        module.register_forward_pre_hook(lambda *_, p=path: timeline.open.append(p))
        module.register_forward_hook(lambda *_: timeline.open.pop() and None)
    place = torch.device(device)

    def fake(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        kind = dtype if value.dtype in own else value.dtype
        return torch.empty(value.shape, dtype=kind, device=place)

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            weights = {name: fake(tensor) for name, tensor in tensors.items()}
            arguments = tree_map(fake, dict(with_tuple(model, call)))
            with timeline:
                torch.func.functional_call(shell, weights, (), arguments)
    except Exception as error:  # a model may fail in any way on tensors that hold nothing
        raise PruningError(
            f"the memory of a call of {type(model).__name__} cannot be traced without values "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); leave prune.target.memory_gb out"
        ) from error
    return timeline.moments


@dataclass(frozen=True)
class MemoryModel:
    """The peak of memory of a call, for any plan.

    Attributes:
        cost: Counts parameters.
        itemsize: Bytes of a weight.
        buffers: Bytes of what is held beside the parameters.
        live: Of each moment that may be the largest, bytes alive in the dense model, (M,).
        paths: The module that runs at each.
        slopes: Bytes that all units of a group take at each moment, by group: (M,).
        extra: Bytes that it is corrected by, after a slim model was measured.
    """

    cost: CostModel
    itemsize: int
    buffers: int
    live: NDArray[np.float64]
    paths: tuple[str, ...]
    slopes: Mapping[str, NDArray[np.float64]]
    extra: float = 0.0

    key = "memory"
    unit = "bytes"

    @classmethod
    def of(
        cls,
        cost: CostModel,
        dense: Sequence[Moment],
        cut: Sequence[tuple[Mapping[str, float], Sequence[Moment]]],
        *,
        itemsize: int,
        buffers: int = 0,
    ) -> MemoryModel:
        """Return what the moments of a dense call and of calls with groups cut say.

        Args:
            cost: Of the model.
            dense: Moments of a dense call.
            cut: For some runs, the share of the units that goes of each group that is cut, and the moments. At any
                moment no more than one of a run's groups may have tensors alive.
            itemsize: Bytes of a weight.
            buffers: Bytes beside parameters.
        """
        live = np.array([moment.live for moment in dense], dtype=np.float64)
        paths = [moment.path for moment in dense]
        slopes: dict[str, NDArray[np.float64]] = {}
        owners = {group.name: group for group in cost.groups}
        for shares, moments in cut:
            if [moment.path for moment in moments] != paths:
                continue  # it runs otherwise when it is cut: then nothing is taken to be saved
            less = live - np.array([moment.live for moment in moments], dtype=np.float64)
            for name, share in shares.items():
                inside = np.array([lies_in(path, _places(owners[name])) for path in paths])
                slopes[name] = np.where(inside, less / share, 0.0)
        chosen = _largest(live, slopes)
        return cls(
            cost,
            itemsize,
            buffers,
            live[chosen],
            tuple(paths[i] for i in chosen),
            {name: own[chosen] for name, own in slopes.items() if own[chosen].any()},
        )

    def total(self, plan: PruningPlan | None = None) -> float:
        """Return the bytes that are held at once in a call under a plan, weights included."""
        plan = (plan or PruningPlan()).completed(self.cost.groups)
        live = self.live.copy()
        for group in self.cost.groups:
            if group.name in plan.kept and group.name in self.slopes:
                live -= self.slopes[group.name] * (1 - len(plan.kept[group.name]) / group.num_units)
        if plan.removed_blocks:
            live[[lies_in(path, plan.removed_blocks) for path in self.paths]] = 0.0
        return self._weights(self.cost.params(plan)) + float(live.max(initial=0.0)) + self.extra

    def sums(self) -> Sequence[Sum]:
        """Return a sum for each moment."""
        units = self.cost.unit_costs("params")

        def of(moment: int) -> Sum:
            def freed(group: PrunableGroup, kept: Sequence[int]) -> NDArray[np.float64]:
                gone = group.num_units - np.asarray(kept, dtype=np.float64)
                found = units[group.name] * self.itemsize * gone
                if group.kind == "blocks" and lies_in(self.paths[moment], group.paths):
                    found = found + self.live[moment] * gone
                elif group.name in self.slopes:
                    found = found + self.slopes[group.name][moment] * gone / group.num_units
                return found

            return Sum(self._weights(self.cost.params()) + self.live[moment] + self.extra, freed)

        return [of(moment) for moment in range(len(self.live))]

    def known(self, group: PrunableGroup) -> None:
        """All sizes are in proportion."""
        return

    def corrected(self, predicted: float, measured: float) -> MemoryModel:
        """Return the model whose constant says what a slim model was measured to hold, in bytes."""
        return replace(self, extra=self.extra + measured - predicted)

    def _weights(self, params: int) -> float:
        return float(params * self.itemsize + self.buffers)


def _places(group: PrunableGroup) -> tuple[str, ...]:
    """Return the paths of the modules in which units of a group are alive: the group's, and those of its slices."""
    parts = [*group.produced_by, *group.consumed_by]
    return (group.module, *(part.path.rpartition(".")[0] for part in parts))


def _largest(live: NDArray[np.float64], slopes: Mapping[str, NDArray[np.float64]]) -> list[int]:
    """Return the moments that are the largest of those which the same groups have a part in, at some sizes."""
    names = list(slopes)
    parts = np.array([slopes[name] != 0 for name in names]).reshape(len(names), len(live)).T
    kinds: dict[bytes, list[int]] = {}
    for index, row in enumerate(parts):
        kinds.setdefault(row.tobytes(), []).append(index)
    chosen: set[int] = set()
    for members in kinds.values():
        total = np.array([[slopes[name][i] for name in names] for i in members]).reshape(len(members), -1)
        dense = live[members]
        for share in SIZES:  # all together, and each by itself
            chosen.add(members[int(np.argmax(dense - total.sum(1) * share))])
            own = np.flatnonzero(parts[members[0]])
            chosen.update(members[int(np.argmax(dense - total[:, k] * share))] for k in own)
    return sorted(chosen)
