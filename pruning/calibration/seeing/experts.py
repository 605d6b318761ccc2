"""Seeing what whole experts put out, and what the model's output makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.calibration.context import Context
from pruning.calibration.driver import OnTensor
from pruning.calibration.observer import Observer, Sight
from pruning.calibration.seeing.gradients import Effects, OfLoss
from pruning.calibration.step import Step, by_bucket, check_finite
from pruning.calibration.sums import summable
from pruning.groups.experts import EXPERTS, mixture_at
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class ExpertsAt:
    """A group of experts.

    Attributes:
        group: The group.
        outputs: What puts out the result of each, by paths of modules or of matrices of a stack.
    """

    group: PrunableGroup
    outputs: tuple[str, ...]

    @property
    def key(self) -> str:
        """The group's name."""
        return self.group.name

    @property
    def experts(self) -> int:
        """E, the experts of the group."""
        return self.group.num_units


@dataclass(frozen=True)
class Produced:
    """What one expert puts out for tokens of one timestep bucket.

    Attributes:
        expert: Which of the experts.
        experts: E, how many there are.
        y: (R, C) float32.
        gate: (R,) float64, by what the layer multiplies each row.
        weight: (R,) float64, w_tau.
    """

    expert: int
    experts: int
    y: Tensor
    gate: Tensor
    weight: Tensor

    def of_expert(self, value: Tensor) -> Tensor:
        """Return a number of this expert as one for each, (E,) float64, 0 for the others."""
        found = torch.zeros(self.experts, dtype=torch.float64, device=value.device)
        found[self.expert] = value
        return found


class _OfExperts(Sight):
    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[ExpertsAt]:
        """Return the groups of experts."""
        layers = {group: model.get_submodule(group.module) for group in groups if group.kind == EXPERTS}
        found = {group: mixture_at(group.module, layer) for group, layer in layers.items()}
        return [ExpertsAt(group, mixture.outputs) for group, mixture in found.items() if mixture is not None]


@dataclass(frozen=True)
class ExpertOutput(_OfExperts):
    """Sees `Produced`."""

    def watch(self, places: Sequence[ExpertsAt], observers: Mapping[str, Observer], context: Context) -> None:
        """Hand on what leaves the experts."""
        for place in places:
            for expert, path in enumerate(place.outputs):
                context.driver.outputs[path].append(self._seen(place, expert, observers, context))

    def _seen(
        self, place: ExpertsAt, expert: int, observers: Mapping[str, Observer], context: Context
    ) -> OnTensor:
        @torch.no_grad()
        def see(y: Tensor, step: Step, row_of: Tensor) -> None:
            sent = context.gates.of(place.outputs[expert], len(y))
            assert sent is not None
            rows, gates = summable(y).float(), sent.gate.double()
            weights = step.weights[row_of].to(gates)
            for bucket, here in by_bucket(step.buckets[row_of]):
                view = Produced(expert, place.experts, rows[here], gates[here], weights[here])
                context.add(place, observers, view, bucket)

        return see


@dataclass(frozen=True)
class LayerInput(_OfExperts):
    """Sees the tokens that enter a layer of experts: w_tau of each, (R,) float64, all of one timestep bucket."""

    def watch(self, places: Sequence[ExpertsAt], observers: Mapping[str, Observer], context: Context) -> None:
        """Hand on what enters the layers."""
        for place in places:
            context.driver.inputs[place.group.module].append(self._seen(place, observers, context))

    def _seen(self, place: ExpertsAt, observers: Mapping[str, Observer], context: Context) -> OnTensor:
        def see(x: Tensor, step: Step, row_of: Tensor) -> None:
            weights = step.weights[row_of].repeat_interleave(x.shape[1:-1].numel())
            buckets = step.buckets[row_of].repeat_interleave(x.shape[1:-1].numel())
            for bucket, here in by_bucket(buckets):
                context.add(place, observers, weights[here], bucket)

        return see


@dataclass(frozen=True)
class ExpertEffect(_OfExperts, OfLoss):
    """Sees `Effects` of the experts: ``z_e = sum_i <dL/dy_i, y_i>`` over the rows y that expert e puts out.

    The gradient is that by an expert's own output, so it has the gates in it.
    """

    def watch(self, places: Sequence[ExpertsAt], observers: Mapping[str, Observer], context: Context) -> None:
        """Ask for the gradients of what leaves the experts."""
        for place in places:
            tap = _Effects(place, observers, context, self.loss)
            for expert, path in enumerate(place.outputs):
                context.driver.outputs[path].append(tap.of(expert))
            context.driver.gradients.ends[self.loss].append(tap.finish)


class _Effects:
    """Adds up the effects of the experts of one layer over a forward, and hands them to the observers."""

    def __init__(
        self, place: ExpertsAt, observers: Mapping[str, Observer], context: Context, loss: str
    ) -> None:
        self._place, self._observers, self._context, self._loss = place, observers, context, loss
        self._z: Tensor | None = None

    def of(self, expert: int) -> OnTensor:
        """Return who asks for the gradients by the output of one expert."""

        def see(y: Tensor, step: Step, row_of: Tensor) -> None:
            def add(value: Tensor, q: Tensor) -> None:
                check_finite(
                    q,
                    f"the gradient at {self._place.outputs[expert]!r}",
                    lambda rows: step.describe(row_of[rows].tolist()),
                )
                product = (summable(value).double() * summable(q).double()).flatten(1).sum(1)
                if self._z is None:
                    shape = (len(step.keys), self._place.experts)
                    self._z = torch.zeros(shape, dtype=torch.float64, device=product.device)
                self._z[:, expert].index_add_(0, row_of.to(product.device), product)

            self._context.driver.gradients.want(self._loss, y, add, read=_copy)

        return see

    def finish(self, step: Step) -> None:
        """Hand on the effects of a forward."""
        if self._z is None:
            return
        for bucket, here in by_bucket(step.buckets):
            view = Effects(self._z[here], step.weights[here].to(self._z.device))
            self._context.add(self._place, self._observers, view, bucket)
        self._z = None


def _copy(y: Tensor) -> Tensor:
    """Return what an expert puts out, which its layer may multiply in place."""
    return y.detach().clone()
