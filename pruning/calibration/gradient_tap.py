"""Runs the backward passes of a calibration batch and feeds units' first-order effects to the statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.calibration.base import GradientStatistic, SensitivityStatistic
from pruning.calibration.consumer import Consumer, check_finite
from pruning.calibration.draws import random_signs
from pruning.calibration.step import Step
from pruning.calibration.sums import Sums, summable
from pruning.errors import PruningError


def data_losses(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each sample, (B,), with its graph."""
    return (output.float() - target.to(output.device, torch.float32)).square().flatten(1).mean(1)


def _with_gradient(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.requires_grad_(True)


@dataclass(frozen=True)
class _Seen:
    consumer: Consumer
    x: Tensor  # input or output
    owner: Tensor
    omegas: Mapping[str, Tensor]


class GradientTap:
    """Keeps the consumers' inputs and outputs of one forward and, given its output, gathers the gradient statistics.

    One backward pass for the data loss and one for the output's random projection; only activations have
    gradients.

    Args:
        statistics: By group name, then by statistic name.
        sensitivities: Statistics of the output's gradient, by group name, then by statistic name.
        means: Channel means mu by group name, (C,), for the centred effects.
        sums: Where the statistics go.
        seed: Of the random signs.
    """

    def __init__(
        self,
        statistics: Mapping[str, Mapping[str, GradientStatistic]],
        sensitivities: Mapping[str, Mapping[str, SensitivityStatistic]],
        means: Mapping[str, Tensor],
        sums: Sums,
        seed: int,
    ) -> None:
        self._statistics = statistics
        self._sensitivities = sensitivities
        self._means = means
        self._sums = sums
        self._seed = seed
        self._seen: list[_Seen] = []
        self._outputs: list[_Seen] = []
        losses = {s.loss for by_name in statistics.values() for s in by_name.values()}
        self._losses = sorted(losses | ({"output"} if sensitivities else set()))

    @property
    def wanted(self) -> bool:
        """Whether `backward` has anything to gather."""
        return bool(self._losses)

    def restart(self) -> None:
        """Forget what the last forward left."""
        self._seen.clear()
        self._outputs.clear()

    def see(self, consumer: Consumer, x: Tensor, owner: Tensor, omegas: Mapping[str, Tensor]) -> None:
        """Keep one input of a consumer; an input that no gradient reaches yet becomes a leaf."""
        if torch.is_grad_enabled():
            self._seen.append(_Seen(consumer, _with_gradient(x), owner, omegas))

    def see_output(self, consumer: Consumer, y: Tensor, owner: Tensor) -> None:
        """Keep one output of a consumer."""
        if torch.is_grad_enabled():
            self._outputs.append(_Seen(consumer, _with_gradient(y), owner, {}))

    def backward(self, output: Tensor, target: Tensor, step: Step) -> None:
        """Gather the gradient statistics of the forward that gave `output`.

        Args:
            output: Model output (B, C, H, W), with its graph.
            target: What the model should predict, same shape.
            step: The denoiser's call.

        Raises:
            PruningError: If a loss or gradient holds NaN or infinity, or no consumer was seen.
        """
        if not self._seen and not self._outputs:
            raise PruningError(
                "gradient statistics were asked for, but no consumer ran with gradients enabled"
            )
        for loss in self._losses:
            per_sample = self._loss(loss, output, target, step)
            check_finite(per_sample, f"the {loss} loss of calibration", step.describe)
            last = loss == self._losses[-1]
            outputs = self._outputs if loss == "output" else []
            wanted = [seen.x for seen in [*self._seen, *outputs]]
            gradients = torch.autograd.grad(
                per_sample.sum(), wanted, retain_graph=not last, allow_unused=True
            )
            with torch.no_grad():
                self._gather(loss, gradients[: len(self._seen)], step)
                self._gather_outputs(outputs, gradients[len(self._seen) :], step)
        self.restart()

    def _loss(self, loss: str, output: Tensor, target: Tensor, step: Step) -> Tensor:
        """Return the loss of each sample, (B,)."""
        if loss == "data":
            return data_losses(output, target)
        signs = random_signs(self._seed, step.keys, step.timesteps.tolist(), output.shape[1:])
        return (output.float() * signs.to(output.device)).flatten(1).sum(1)

    def _gather(self, loss: str, gradients: tuple[Tensor | None, ...], step: Step) -> None:
        effects: dict[str, dict[str, Tensor]] = {}
        for seen, q in zip(self._seen, gradients, strict=True):
            group = seen.consumer.group
            found = self._statistics.get(group.name, {})
            if q is None or not any(statistic.loss == loss for statistic in found.values()):
                continue
            check_finite(
                q,
                f"the gradient at {group.consumer!r}",
                lambda rows, s=seen: step.describe(s.owner[rows].tolist()),
            )
            for suffix, z in self._effect(loss, seen, q, len(step.samples)).items():
                sums = effects.setdefault(group.name, {})
                sums[suffix] = sums[suffix] + z if suffix in sums else z
        for group_name, by_suffix in effects.items():
            for suffix, z in by_suffix.items():
                for name, statistic in self._statistics[group_name].items():
                    if statistic.loss == loss:
                        value = statistic.measure(z, step.weights.to(z.device))
                        self._sums.add(group_name, name + suffix, value)

    def _gather_outputs(self, outputs: list[_Seen], gradients: tuple[Tensor | None, ...], step: Step) -> None:
        for seen, gradient in zip(outputs, gradients, strict=True):
            if gradient is None:
                continue
            group, q = seen.consumer.group.name, summable(gradient)
            is_image = isinstance(seen.consumer.module, nn.Conv2d)
            rows = q.flatten(2).transpose(1, 2) if is_image else q.flatten(1, -2)  # (S, N, C)
            weight = step.weights[seen.owner].to(rows.device, torch.float32)[:, None].expand(rows.shape[:2])
            for name, statistic in self._sensitivities[group].items():
                value = statistic.measure(rows.flatten(0, 1).float(), weight.flatten())
                self._sums.add(group, name, value)

    def _effect(self, loss: str, seen: _Seen, q: Tensor, batch: int) -> dict[str, Tensor]:
        """Return z (B, G) float64 by suffix: '' plain, '@variant' with rows times omega."""
        consumer, group = seen.consumer, seen.consumer.group
        x = consumer.tokens(summable(seen.x)).float()  # (S, N, C)
        if loss == "output":
            x = x - self._means[group.name].to(x)
        product = x * consumer.tokens(summable(q)).float()  # (S, N, C)
        if group.num_units < product.shape[-1]:
            product = product.unflatten(-1, (group.num_units, -1)).sum(-1)  # (S, N, G)
        owner = seen.owner.to(x.device)
        found = {}
        for suffix, omega in {"": None, **{f"@{v}": o for v, o in seen.omegas.items()}}.items():
            rows = product if omega is None else product * omega.to(product)[:, :, None]
            z = torch.zeros(batch, group.num_units, dtype=torch.float64, device=x.device)
            found[suffix] = z.index_add_(0, owner, rows.sum(1, dtype=torch.float64))
        return found
