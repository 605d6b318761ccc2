"""Denoising error on held-out data by timestep bucket, and the excess error to the reference.

Denoising error: mean over samples of the mean squared difference of prediction and target. Excess error:

    D = mean |eps - eps_ref|^2 / mean |eps_ref|^2

over the same images, noise and timesteps, the end point of the study (SCORES.md, section 7). The images are what was
drawn at random, so the intervals are clustered by image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eval.intervals import ratio_interval
from eval.types import Context, Noised

NEEDS = ("predict", "noised")


@dataclass
class _Rows:
    """What is kept of every prediction: one number a sample each, never the prediction."""

    error: list[Tensor] = field(default_factory=list)
    change: list[Tensor] = field(default_factory=list)
    power: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def measure(context: Context) -> dict[str, dict[str, Any]]:
    """Return for every subject the denoising error by bucket and the excess error, with intervals.

    All subjects see each batch before the next one is made, so the data passes once.

    Raises:
        ValueError: If a prediction or a target holds NaN or infinity or has another shape, or there is no batch.
    """
    context.check("denoising", NEEDS)
    assert context.noised is not None
    rows = {name: _Rows() for name in context.subjects}
    buckets: list[Tensor] = []
    ids: list[Tensor | None] = []
    for index, item in enumerate(context.noised()):
        batch = Noised.of(item)
        target = batch.target.detach().cpu().double()
        _check(
            target,
            f"metric 'denoising', target of batch {index}, timestep bucket {batch.bucket}",
            batch.sample_ids,
        )
        reference: Tensor | None = None
        for name in context.subjects:
            predicted = _predict(context, name, batch, index)
            reference = predicted if reference is None else reference
            rows[name].error.append((predicted - target).square().flatten(1).mean(1))
            rows[name].change.append((predicted - reference).square().flatten(1).sum(1))
            rows[name].power.append(reference.square().flatten(1).sum(1))
        buckets.append(torch.full((len(target),), batch.bucket, dtype=torch.long))
        ids.append(None if batch.sample_ids is None else batch.sample_ids.detach().cpu())
        context.report_progress("denoising error", index + 1, 0)
    if not buckets:
        raise ValueError("metric 'denoising': Context.noised yielded no batch; give held-out data")
    bucket = torch.cat(buckets)
    known = [i for i in ids if i is not None]
    images = torch.cat(known) if len(known) == len(ids) else None
    return {name: _result(row, bucket, images) for name, row in rows.items()}


def _predict(context: Context, name: str, batch: Noised, index: int) -> Tensor:
    """Return a subject's checked prediction in float64 on the CPU, ``(B, C, H, W)``."""
    predict = context.subjects[name].predict
    assert predict is not None
    place = f"subject {name!r}, metric 'denoising', batch {index}, timestep bucket {batch.bucket}"
    predicted = predict(batch.call).detach().cpu().double()
    if predicted.shape != batch.target.shape:
        raise ValueError(
            f"{place}: the prediction has shape {tuple(predicted.shape)}, the target {tuple(batch.target.shape)}; "
            "they must agree (a learned variance is to be dropped)"
        )
    _check(predicted, f"{place}, prediction", batch.sample_ids)
    return predicted


def _check(values: Tensor, place: str, sample_ids: Tensor | None) -> None:
    """Raise ValueError if `values` ``(B, ...)`` holds NaN or infinity, naming the first sample that does."""
    bad = ~torch.isfinite(values).flatten(1).all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        sample = f"row {row}" if sample_ids is None else f"sample {int(sample_ids[row])}"
        raise ValueError(
            f"{place}: NaN or infinity in {int(bad.sum())} of {len(values)} samples, first in {sample}; check the "
            "model's weights and its dtype (float16 overflows)"
        )


def _result(rows: _Rows, bucket: Tensor, images: Tensor | None) -> dict[str, Any]:
    """Return the numbers of one subject.

    Args:
        rows: What was kept, one value a row.
        bucket: Timestep bucket of each row, ``(R,)``.
        images: Image of each row, ``(R,)``, or None: then there are no intervals.
    """
    error, change, power = (torch.cat(x) for x in (rows.error, rows.change, rows.power))
    count = int(bucket.max()) + 1
    by_bucket = [error[bucket == b] for b in range(count)]
    excess = [(change[bucket == b], power[bucket == b]) for b in range(count)]
    return {
        "denoising_error": [float(e.mean()) if len(e) else None for e in by_bucket],
        "denoising_error_mean": float(error.mean()),
        "denoising_error_ci95": _clustered(error, torch.ones_like(error), images),
        "denoising_samples": len(error),
        "denoising_images": None if images is None else len(images.unique()),
        "excess_error": _share(change, power),
        "excess_error_ci95": _clustered(change, power, images),
        "excess_error_by_bucket": [_share(c, p) for c, p in excess],
    }


def _share(change: Tensor, power: Tensor) -> float | None:
    """Return ``sum change / sum power``, or None if the reference predicts nothing but zeros."""
    return float(change.sum() / power.sum()) if float(power.sum()) > 0 else None


def _clustered(numerator: Tensor, denominator: Tensor, images: Tensor | None) -> list[float] | None:
    """Return the interval of ``sum numerator / sum denominator`` with the rows summed by image first."""
    if images is None or float(denominator.sum()) <= 0:
        return None
    unique, cluster = images.unique(return_inverse=True)
    a, b = (
        torch.zeros(len(unique), dtype=torch.float64).index_add_(0, cluster, x)
        for x in (numerator, denominator)
    )
    return ratio_interval(a, b)
