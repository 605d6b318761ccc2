"""Seeing the gradients of the data loss by a group's weights, summed over a calibration run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.calibration.context import Context
from pruning.calibration.observer import Observer, Sight
from pruning.calibration.step import Step
from pruning.errors import PruningError
from pruning.types import PrunableGroup, slices_of


@dataclass(frozen=True)
class Holder:
    """A group as the owner of weights.

    Attributes:
        group: The group.
        parameters: Those of which it owns a part, by path.
    """

    group: PrunableGroup
    parameters: Mapping[str, nn.Parameter]

    @property
    def key(self) -> str:
        """The group's name."""
        return self.group.name


@dataclass(frozen=True)
class Owned:
    """What a group owns at the end of a run.

    Attributes:
        weights: By parameter path.
        gradients: ``sum_{n,t} w_tau dL_t/dw`` by parameter path, float32, on the weights' device.
        group: The group.
    """

    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    group: PrunableGroup


@dataclass(frozen=True)
class WeightGradient(Sight):
    """Sees `Owned`, once, when the run is over.

    A sample's gradients, with their sign, are summed from its least noise upwards, which ends, for good, at the first
    timestep whose loss is below `threshold` times the largest that the sample has had. Each parameter's gradient goes
    into the sum, and is dropped, as soon as the backward pass has it: memory is one float32 copy of the groups'
    weights and the gradient of a single parameter.

    Attributes:
        threshold: See above; 0 takes all timesteps.
    """

    needs_calls: ClassVar[bool] = True

    threshold: float = 0.0

    @property
    def needs_targets(self) -> bool:
        """For the loss by the data."""
        return True

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[Holder]:
        """Return every group that has a consumer."""
        return [
            Holder(group, {part.path: model.get_parameter(part.path) for part in slices_of(group)})
            for group in groups
            if group.consumed_by
        ]

    def held(self, place: Holder) -> int:
        """Return the bytes of the gradients' sums."""
        return sum(4 * parameter.numel() for parameter in place.parameters.values())

    def watch(self, places: Sequence[Holder], observers: Mapping[str, Observer], context: Context) -> None:
        """Ask for the gradients by all parameters of the groups in one backward pass."""
        if not places:
            return
        tap = _Tap(places, observers, context, self.threshold)
        context.driver.gradients.listeners.append(tap)
        context.driver.ends.append(tap.finish)


class _Tap:
    """Sums gradients over samples and timesteps; a `ParameterListener`."""

    def __init__(
        self, places: Sequence[Holder], observers: Mapping[str, Observer], context: Context, threshold: float
    ) -> None:
        self._places, self._observers, self._context, self._threshold = places, observers, context, threshold
        found = {path: parameter for place in places for path, parameter in place.parameters.items()}
        self.parameters: Mapping[str, nn.Parameter] = dict(sorted(found.items()))
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[int, float] = {}  # loss so far, by sample; infinite once the sample is done
        self._last: dict[int, float] = {}

    def weigh(self, losses: Tensor, step: Step) -> Tensor:
        """Return w_tau of the rows that count, (B,), 0 for the others.

        Raises:
            PruningError: If a sample comes at a lower timestep than before.
        """
        rows = zip(step.keys, step.timesteps, losses, strict=True)
        return step.weights * torch.tensor(
            [self._counts(key, float(t), float(loss)) for key, t, loss in rows]
        )

    def _counts(self, key: int, timestep: float, loss: float) -> bool:
        """Tell whether a sample's timestep is part of its sum."""
        if timestep < self._last.get(key, -math.inf):
            raise PruningError(
                f"statistic {next(iter(self._observers))!r} sums over timesteps from the least noise upwards, but a "
                f"sample came at timestep {timestep:g} after {self._last[key]:g}; give batches in the order of their "
                "buckets"
            )
        self._last[key] = timestep
        largest = max(self._largest.get(key, 0.0), loss)
        done = loss < self._threshold * largest
        self._largest[key] = math.inf if done else largest
        return not done

    def take(self, path: str, gradient: Tensor) -> None:
        """Add the gradient by one parameter."""
        total = self._sums.get(path)
        if total is None:
            self._sums[path] = gradient.float().clone()
        else:
            total.add_(gradient)

    @torch.no_grad()
    def finish(self) -> None:
        """Hand on the sums."""
        sums = {path: self._sums.get(path, torch.zeros_like(p)) for path, p in self.parameters.items()}
        for place in self._places:
            self._context.add(place, self._observers, Owned(self.parameters, sums, place.group))
