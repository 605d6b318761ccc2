"""Seeing gradients of a loss by what enters and what leaves a consumer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruning.calibration.context import Context
from pruning.calibration.driver import OnTensor
from pruning.calibration.observer import Observer, Sight
from pruning.calibration.rows import Consumer
from pruning.calibration.seeing.inputs import Rows
from pruning.calibration.step import Step, by_bucket, check_finite
from pruning.calibration.sums import summable
from pruning.errors import PruningError


@dataclass(frozen=True)
class Effects:
    """First-order effects of a group's units, all of one timestep bucket.

    With x (i, c) the consumer's input and q = dL/dx, a unit's effect is ``z_g = sum_i sum_{c in g} q x`` for the data
    loss, and with ``x - mu`` in place of x for the output's projection; row i times omega_i in a variant.

    Attributes:
        z: (B, G) float64.
        weight: w_tau, (B,) float64.
    """

    z: Tensor
    weight: Tensor


@dataclass(frozen=True)
class OfLoss(Sight):
    """Sees gradients of a loss L.

    Attributes:
        loss: ``data``: L = mean squared error to the target; ``output``: L = <v, model output>, v random signs.
    """

    needs_calls: ClassVar[bool] = True

    loss: str

    @property
    def needs_targets(self) -> bool:
        """For the loss by the data."""
        return self.loss == "data"


@dataclass(frozen=True)
class InputGradient(OfLoss):
    """Sees `Effects`."""

    @property
    def needs_means(self) -> bool:
        """For centred effects."""
        return self.loss == "output"

    def variants(self, place: Consumer, asked: Sequence[str]) -> list[str]:
        """Return all but ``guided``, where there is an attention module that weights the rows."""
        return [variant for variant in asked if variant != "guided" and place.site is not None]

    def watch(self, places: Sequence[Consumer], observers: Mapping[str, Observer], context: Context) -> None:
        """Ask for the gradients of what enters the consumers."""
        for place in places:
            tap = _Effects(place, observers, context, self)
            context.driver.inputs[place.path].append(tap.see)
            context.driver.gradients.ends[self.loss].append(tap.finish)


class _Effects:
    """Adds up the effects at one consumer over a forward, and hands them to the observers."""

    def __init__(
        self, place: Consumer, observers: Mapping[str, Observer], context: Context, sees: InputGradient
    ) -> None:
        self._place, self._observers, self._context, self._loss = place, observers, context, sees.loss
        self._mean = context.means[place.key] if sees.needs_means else None
        self._z: dict[str, Tensor] = {}

    def see(self, x: Tensor, step: Step, row_of: Tensor) -> None:
        """Ask for the gradient of one input."""
        unknown = len(step.keys) > 1 and len(row_of) and not bool(row_of.any())
        if self._loss == "data" and unknown and self._context.gates.of(self._place.path, len(x)) is None:
            raise PruningError(
                f"the rows that enter {self._place.path!r} do not say whose they are, and "
                f"{next(iter(self._observers))!r} takes samples one by one; calibrate with a batch size of 1"
            )
        omegas = self._context.token_weights.at(self._place, x)

        def add(x: Tensor, q: Tensor) -> None:
            check_finite(
                q,
                f"the gradient at {self._place.path!r}",
                lambda rows: step.describe(row_of[rows].tolist()),
            )
            self._add(x, q, len(step.keys), row_of, omegas)

        self._context.driver.gradients.want(self._loss, x, add)

    def _add(self, x: Tensor, q: Tensor, batch: int, row_of: Tensor, omegas: Mapping[str, Tensor]) -> None:
        """Add to z (B, G) by suffix: '' plain, '@variant' with rows times omega."""
        place = self._place
        tokens = place.tokens(summable(x)).float()  # (S, N, C)
        if self._mean is not None:
            tokens = tokens - self._mean.to(tokens)
        product = tokens * place.tokens(summable(q)).float()  # (S, N, C)
        if place.units < product.shape[-1]:
            product = product.unflatten(-1, (place.units, -1)).sum(-1)  # (S, N, G)
        for suffix, omega in {"": None, **{f"@{v}": o for v, o in omegas.items()}}.items():
            rows = product if omega is None else product * omega.to(product)[:, :, None]
            zeros = torch.zeros(batch, place.units, dtype=torch.float64, device=product.device)
            z = self._z.setdefault(suffix, zeros)
            z.index_add_(0, row_of.to(z.device), rows.sum(1, dtype=torch.float64))

    def finish(self, step: Step) -> None:
        """Hand on the effects of a forward."""
        for suffix, z in self._z.items():
            for bucket, here in by_bucket(step.buckets):
                view = Effects(z[here], step.weights[here].to(z.device))
                self._context.add(self._place, self._observers, view, bucket, [suffix])
        self._z = {}


@dataclass(frozen=True)
class OutputGradient(OfLoss):
    """Sees `Rows` of the gradient q = dL/dy by a consumer's output y: all, whatever the setting ``rows`` says."""

    def watch(self, places: Sequence[Consumer], observers: Mapping[str, Observer], context: Context) -> None:
        """Ask for the gradients of what leaves the consumers."""
        context.driver.gradients.ends[self.loss].append(lambda step: None)
        for place in places:
            context.driver.outputs[place.path].append(self._seen(place, observers, context))

    def _seen(self, place: Consumer, observers: Mapping[str, Observer], context: Context) -> OnTensor:
        def see(y: Tensor, step: Step, row_of: Tensor) -> None:
            context.driver.gradients.want(
                self.loss, y, lambda _, q: add(summable(q), step, row_of), read=lambda y: None
            )

        def add(q: Tensor, step: Step, row_of: Tensor) -> None:
            rows = place.output_rows(q)
            weights = step.weights[row_of].to(rows.device, torch.float32)[:, None].expand(rows.shape[:2])
            for bucket, here in by_bucket(step.buckets[row_of]):
                view = Rows(rows[here].flatten(0, 1).float(), weights[here].flatten(), place)
                context.add(place, observers, view, bucket)

        return see
