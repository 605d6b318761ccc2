"""Feeds the rows that enter the consumers to the row statistics, plain and for every omega variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pruning.calibration.base import RowStatistic
from pruning.calibration.consumer import Consumer
from pruning.calibration.draws import ROWS, subset
from pruning.calibration.step import Step
from pruning.calibration.sums import Sums, summable


class RowTap:
    """Gathers row statistics of one group.

    A variant's sum is the plain one less the deficit sum (1 - omega^2) x x^T over the few rows with omega != 1. It
    is gathered the other way round, rows with omega = 1 once for all sums and the few others once a sum: the same
    price, and nothing cancels where those few rows are large.

    Args:
        consumer: Where the rows enter.
        statistics: By name.
        sums: Where they go.
        rows: Rows to look at in each sample, drawn once for all its timesteps; None for all. Sums are scaled up.
        seed: Of the draws.
    """

    def __init__(
        self,
        consumer: Consumer,
        statistics: Mapping[str, RowStatistic],
        sums: Sums,
        rows: int | None,
        seed: int,
    ) -> None:
        self.consumer = consumer
        self._statistics = dict(sorted(statistics.items(), key=lambda entry: entry[1].part_of is not None))
        self._sums = sums
        self._rows = rows
        self._seed = seed

    @torch.no_grad()
    def see(
        self, x: Tensor, step: Step, owner: Tensor, omegas: Mapping[str, Tensor], suffix: str = ""
    ) -> None:
        """Add one input of the consumer.

        Args:
            x: The input, S leading rows.
            step: The denoiser's call.
            owner: Which of the step's rows each of the S is, int64 (S,).
            omegas: omega by variant, (S, N) each; empty where omega = 1.
            suffix: Of the names of the sums with omega = 1.
        """
        image = None if omegas or self._rows is not None else self.consumer.image(summable(x))
        if image is not None and all(s.of_image is not None for s in self._statistics.values()):
            self._see_image(image, step, owner, suffix)
            return
        for part, rows in self.consumer.rows(summable(x)):
            buckets, weights = step.buckets[owner[part]], step.weights[owner[part]]
            rows, weights, omega = self._subset(rows, weights, omegas, part, step, owner)
            for bucket in buckets.unique().tolist():
                here = (buckets == bucket).nonzero().flatten().to(rows.device)
                whole = len(here) == len(buckets)
                chosen = rows if whole else rows[here]
                weight = weights.to(rows.device, torch.float32)[here, None].expand(-1, rows.shape[1])
                self._add(
                    bucket,
                    chosen.flatten(0, 1),
                    weight.flatten(),
                    {v: o[here].flatten() for v, o in omega.items()},
                    suffix,
                )

    def _see_image(self, image: Tensor, step: Step, owner: Tensor, suffix: str) -> None:
        """Add one input (S, C, H, W) of a convolution without unfolding it."""
        buckets = step.buckets[owner]
        weights = step.weights[owner].to(image.device, torch.float32)
        for bucket in buckets.unique().tolist():
            here = (buckets == bucket).nonzero().flatten().to(image.device)
            x, u = (image, weights) if len(here) == len(buckets) else (image[here], weights[here])

            def measure(statistic: RowStatistic, x: Tensor = x, u: Tensor = u) -> Tensor:
                assert statistic.of_image is not None
                return statistic.of_image(x, u, self.consumer.group)

            self._gather(measure, [suffix], bucket)

    def _subset(
        self,
        rows: Tensor,
        weights: Tensor,
        omegas: Mapping[str, Tensor],
        part: slice,
        step: Step,
        owner: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the rows to look at, (s, n, P), their weights scaled up, and their omegas."""
        omega = {v: o[part].to(rows.device) for v, o in omegas.items()}
        total = rows.shape[1]
        if self._rows is None or self._rows >= total:
            return rows, weights, omega
        samples = [step.samples[i] for i in owner[part].tolist()]
        index = subset(self._seed, samples, total, self._rows, ROWS).to(rows.device)
        kept = rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))
        return kept, weights * (total / self._rows), {v: o.gather(1, index) for v, o in omega.items()}

    def _add(self, bucket: int, x: Tensor, u: Tensor, omegas: Mapping[str, Tensor], suffix: str) -> None:
        """Add rows x (R, P) of one bucket with weights u (R,) and omegas (R,)."""
        variants = {v: u * o.to(u).square() for v, o in omegas.items()}
        marked = torch.zeros(len(u), dtype=torch.bool, device=x.device)
        for omega in omegas.values():
            marked |= omega != 1
        if not bool(marked.any()):
            self._measure(x, u, [suffix, *(f"@{v}" for v in variants)], bucket)
            return
        self._measure(x[~marked], u[~marked], [suffix, *(f"@{v}" for v in variants)], bucket)
        x = x[marked]
        self._measure(x, u[marked], [suffix], bucket)
        for variant, weight in variants.items():
            self._measure(x, weight[marked], [f"@{variant}"], bucket)

    def _measure(self, x: Tensor, u: Tensor, suffixes: list[str], bucket: int) -> None:
        """Measure every statistic on rows x (R, P) once and add it to the sums named by `suffixes`."""
        self._gather(lambda statistic: statistic.measure(x, u, self.consumer.group), suffixes, bucket)

    def _gather(self, measure: Callable[[RowStatistic], Tensor], suffixes: list[str], bucket: int) -> None:
        """Add what `measure` says of every statistic, or a part of what it said of the one that holds it."""
        group, found = self.consumer.group, dict[str, Tensor]()
        for name, statistic in self._statistics.items():
            whole, part = statistic.part_of or (None, None)
            found[name] = value = part(found[whole], group) if part and whole in found else measure(statistic)
            for suffix in suffixes:
                self._sums.add(group.name, name + suffix, value, bucket if statistic.by_bucket else None)
