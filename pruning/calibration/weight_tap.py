"""Sums the gradient of the data loss by the groups' weights over a calibration run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pruning.calibration.base import WeightStatistic
from pruning.calibration.consumer import check_finite
from pruning.calibration.step import Step
from pruning.errors import PruningError
from pruning.types import PrunableGroup, slices_of


class WeightTap:
    """Context manager for one weight statistic; the parameters' ``requires_grad`` and ``grad`` are put back.

    Each parameter's gradient goes into the sum, and is dropped, as soon as the backward pass has it: memory is one
    float32 copy of the groups' weights and the gradient of a single parameter.

    Args:
        model: The denoiser.
        name: Of the statistic.
        statistic: What is made of the sum.
        groups: What it is gathered for.
    """

    def __init__(
        self, model: nn.Module, name: str, statistic: WeightStatistic, groups: Sequence[PrunableGroup]
    ) -> None:
        self._name, self._statistic, self._groups = name, statistic, groups
        paths = sorted({where.path for group in groups for where in slices_of(group)})
        self._parameters = {path: model.get_parameter(path) for path in paths}

    def __enter__(self) -> WeightTap:
        self._sums: dict[str, Tensor] = {}
        self._largest: dict[int, float] = {}  # loss so far, by sample; infinite once the sample is done
        self._last: dict[int, float] = {}
        self._before = {path: (p.requires_grad, p.grad) for path, p in self._parameters.items()}
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        return self

    def __exit__(self, *exc: object) -> None:
        for path, parameter in self._parameters.items():
            required, parameter.grad = self._before[path]
            parameter.requires_grad_(required)

    def backward(self, losses: Tensor, step: Step, *, retain_graph: bool) -> None:
        """Add the gradients of one forward.

        Args:
            losses: Data loss of each row, (B,), with its graph.
            step: The denoiser's call.
            retain_graph: Something else will be differentiated.

        Raises:
            PruningError: If a sample comes at a lower timestep than before, or a gradient holds NaN or infinity.
        """
        counts = torch.tensor(
            [
                self._counts(key, float(t), float(loss))
                for key, t, loss in zip(step.keys, step.timesteps, losses.detach(), strict=True)
            ]
        )
        if not bool(counts.any()):
            return
        weights = (counts * step.weights).to(losses.device, losses.dtype)
        handles = [
            parameter.register_post_accumulate_grad_hook(self._take(path, step))
            for path, parameter in self._parameters.items()
        ]
        try:
            torch.autograd.backward(
                losses @ weights, inputs=list(self._parameters.values()), retain_graph=retain_graph
            )
        finally:
            for handle in handles:
                handle.remove()

    def _counts(self, key: int, timestep: float, loss: float) -> bool:
        """Tell whether a sample's timestep is part of its sum."""
        if timestep < self._last.get(key, -math.inf):
            raise PruningError(
                f"statistic {self._name!r} sums over timesteps from the least noise upwards, but a sample came at "
                f"timestep {timestep:g} after {self._last[key]:g}; give batches in the order of their buckets"
            )
        self._last[key] = timestep
        largest = max(self._largest.get(key, 0.0), loss)
        done = loss < self._statistic.threshold * largest
        self._largest[key] = math.inf if done else largest
        return not done

    def _take(self, path: str, step: Step) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            check_finite(
                gradient[None], f"the gradient by {path!r}", lambda _: step.describe(range(len(step.keys)))
            )
            total = self._sums.get(path)
            if total is None:
                self._sums[path] = gradient.float().clone()
            else:
                total.add_(gradient)

        return hook

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Return what the statistic makes of the sums, (G,) float64 by group name."""
        sums = {path: self._sums.get(path, torch.zeros_like(p)) for path, p in self._parameters.items()}
        return {
            group.name: self._statistic.measure(self._parameters, sums, group).to("cpu", torch.float64)
            for group in self._groups
        }
