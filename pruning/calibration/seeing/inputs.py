"""Seeing the rows that enter a consumer, plain and for every variant of weighted rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning.calibration.context import Context
from pruning.calibration.draws import ROWS, subset
from pruning.calibration.observer import Observer, Sight
from pruning.calibration.rows import Consumer
from pruning.calibration.step import Step, by_bucket
from pruning.calibration.sums import summable


@dataclass(frozen=True)
class Rows:
    """Rows of one timestep bucket.

    Attributes:
        x: (R, P) float32; channel-major unfolded for convolutions, matching ``weight.flatten(1)``.
        weight: (R,) float32, w_tau, or w_tau omega^2 in a variant; inside an expert times the squared gate.
        place: Where they enter.
    """

    x: Tensor
    weight: Tensor
    place: Consumer


@dataclass(frozen=True)
class Image:
    """The input of a 3 x 3 convolution that keeps its size, whose patches are rows.

    Attributes:
        x: (S, C, H, W) float32.
        weight: (S,) float32, w_tau.
        place: Where it enters.
    """

    x: Tensor
    weight: Tensor
    place: Consumer


@dataclass(frozen=True)
class Input(Sight):
    """Sees `Rows`; where rows need no weights of their own and all observers can, the `Image` that they are patches of.

    Attributes:
        unfolded: Convolutions are seen as their weight reads them; else channel by channel, (R, C).
    """

    unfolded: bool = True

    def variants(self, place: Consumer, asked: Sequence[str]) -> list[str]:
        """Return ``guided``, and the others where there is an attention module that weights the rows."""
        return [variant for variant in asked if variant == "guided" or place.site is not None]

    def watch(self, places: Sequence[Consumer], observers: Mapping[str, Observer], context: Context) -> None:
        """Hand on what enters the consumers."""
        for place in places:
            context.driver.inputs[place.path].append(_Tap(place, observers, context, self.unfolded).see)


class _Tap:
    """Hands the rows of one consumer to the observers.

    A variant's sum is the plain one less the deficit sum (1 - omega^2) x x^T over the few rows with omega != 1. It
    is gathered the other way round, rows with omega = 1 once for all sums and the few others once per sum: the same
    price, and nothing cancels where those few rows are large.
    """

    def __init__(
        self, place: Consumer, observers: Mapping[str, Observer], context: Context, unfolded: bool
    ) -> None:
        self._place, self._context, self._unfolded = place, context, unfolded
        self._observers = {
            name: one
            for name, one in observers.items()
            if one.part_of is None or one.part_of[0] not in observers
        }
        self._of_image = {
            name: replace(one, measure=one.of_image)
            for name, one in self._observers.items()
            if one.of_image is not None
        }
        patches = unfolded and len(self._of_image) == len(self._observers)
        self._as_image = patches and context.rows is None

    @torch.no_grad()
    def see(self, x: Tensor, step: Step, row_of: Tensor) -> None:
        """Hand on one input, and once more as guidance mixes it if that is asked for; experts see no branches."""
        self._see(x, step, row_of, self._context.token_weights.at(self._place, x), "")
        if self._context.guided is not None and self._context.gates.of(self._place.path, len(x)) is None:
            both, one, first = self._context.guided(x, step, row_of, repr(self._place.path))
            self._see(both, one, first, {}, "@guided")

    def _see(self, x: Tensor, step: Step, row_of: Tensor, omegas: Mapping[str, Tensor], suffix: str) -> None:
        """Hand on one input of S leading entries, with omega (S, N) by variant; `suffix` is that of the plain sums."""
        image = self._place.image(summable(x)) if self._as_image and not omegas else None
        if image is not None:
            weights = step.weights[row_of].to(image.device, torch.float32)
            for bucket, here in by_bucket(step.buckets[row_of]):
                view = Image(image[here], weights[here], self._place)
                self._context.add(self._place, self._of_image, view, bucket, [suffix])
            return
        rows = self._place.rows if self._unfolded else self._place.channel_rows
        by_entry = self._context.weights(self._place, step, row_of)
        for part, found in rows(summable(x)):
            kept, weights, omega = self._subset(
                found, by_entry[part], step, row_of[part], {v: o[part] for v, o in omegas.items()}
            )
            for bucket, here in by_bucket(step.buckets[row_of[part]]):
                weight = weights.to(kept.device, torch.float32)[here, None].expand(-1, kept.shape[1])
                flat = {v: o[here].flatten() for v, o in omega.items()}
                self._add(bucket, kept[here].flatten(0, 1), weight.flatten(), flat, suffix)

    def _subset(
        self, rows: Tensor, weights: Tensor, step: Step, row_of: Tensor, omegas: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the rows to look at, (s, n, P), the weights (s,) of their entries, scaled up, and their omegas."""
        count, total = self._context.rows, rows.shape[1]
        omegas = {v: o.to(rows.device) for v, o in omegas.items()}
        if count is None or count >= total:
            return rows, weights, omegas
        samples = [step.samples[i] for i in row_of.tolist()]
        index = subset(self._context.seed, samples, total, count, ROWS).to(rows.device)
        kept = rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))
        return kept, weights * (total / count), {v: o.gather(1, index) for v, o in omegas.items()}

    def _add(self, bucket: int, x: Tensor, u: Tensor, omegas: Mapping[str, Tensor], suffix: str) -> None:
        """Add rows x (R, P) of one bucket with weights u (R,) and omegas (R,)."""
        variants = {f"@{v}": u * o.to(u).square() for v, o in omegas.items()}
        everywhere = [suffix, *variants]
        marked = torch.zeros(len(u), dtype=torch.bool, device=x.device)
        for omega in omegas.values():
            marked |= omega != 1
        if not bool(marked.any()):
            self._measure(x, u, everywhere, bucket)
            return
        self._measure(x[~marked], u[~marked], everywhere, bucket)
        x = x[marked]
        for name, weight in {suffix: u, **variants}.items():
            self._measure(x, weight[marked], [name], bucket)

    def _measure(self, x: Tensor, u: Tensor, suffixes: Sequence[str], bucket: int) -> None:
        """Measure rows once and add what is found to the sums named by `suffixes`."""
        self._context.add(self._place, self._observers, Rows(x, u, self._place), bucket, suffixes)
