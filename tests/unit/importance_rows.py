"""Calibration sums made by hand from raw rows, for the tests of importance and compensation."""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.types import CalibrationStats, ParamSlice, PrunableGroup


def linear_group(
    units: int, unit_size: int, *, kind: str = "attention_heads", offset: int = 0
) -> PrunableGroup:
    """A group whose producer is ``m.up.weight`` and whose consumer is ``m.out.weight``."""
    return PrunableGroup(
        name=f"m:{kind}",
        module="m",
        kind=kind,
        num_units=units,
        unit_size=unit_size,
        produced_by=(ParamSlice("m.up.weight", 0, unit_size),),
        consumed_by=(ParamSlice("m.out.weight", 1, unit_size, offset),),
    )


def sums(rows: Tensor, units: int, weights: Tensor | None = None, buckets: int = 2) -> dict[str, Tensor]:
    """Return the statistics of `rows` (N, P) with row `weights` (N,), row i falling in bucket ``i % buckets``."""
    x = rows.double()
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    bucket = torch.arange(len(x)) % buckets
    by_unit = x.unflatten(1, (units, -1))
    return {
        "row_weight": torch.stack([w[bucket == t].sum() for t in range(buckets)]),
        "input_sum": torch.stack([(w[:, None] * x)[bucket == t].sum(0) for t in range(buckets)]),
        "input_sq": (w[:, None] * x.square()).sum(0),
        "input_unit_moment": torch.einsum("n,ngu,ngv->guv", w, by_unit, by_unit),
        "input_moment": torch.einsum("n,np,nq->pq", w, x, x),
    }


def stats_of(
    group: PrunableGroup, rows: Tensor, weights: Tensor | None = None, buckets: int = 2
) -> CalibrationStats:
    """Return the sums of `rows` for one group."""
    return CalibrationStats({group.name: sums(rows, group.num_units, weights, buckets)})


def random_rows(count: int, width: int, seed: int = 0) -> Tensor:
    """Return correlated rows with a mean, ``(count, width)`` float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    mean = torch.randn(width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + mean


def random_weight(*shape: int, seed: int = 1) -> Tensor:
    """Return a standard normal weight, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
