"""Denoising error on held-out data by timestep bucket, and the excess error to the reference.

Denoising error: mean over samples of the mean squared difference of prediction and target. Excess error:

    D = mean |eps - eps_ref|^2 / mean |eps_ref|^2

over the same images, noise and timesteps, the end point of docs/studies/sink-awareness.md. The images are what was
drawn at random, so the intervals are clustered by image.

Observation, one row per image and timestep bucket (R of them): ``prediction`` float32 ``(R, C, H, W)``, 4 C H W R bytes
on the disk (digits: 256 images at 8 buckets are 2 MB; latents of 64 x 64: 134 MB); ``error`` float64 ``(R,)``, its
mean squared difference to the target (not there for recorded points, which have none); ``bucket`` and ``sample_ids``
int64 ``(R,)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.intervals import ratio_error, ratio_interval
from eval.observation import Observation, Seen, filled
from eval.power import power_of_difference, power_of_ratio
from eval.types import Context, Noised
from eval.workers import side_by_side

NEEDS = ("predict", "noised")
READS = ("denoising",)
ROWS = 256  # predictions that are compared at once


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Predict every held-out noised batch with one subject.

    Raises:
        ValueError: While they are predicted, if a prediction or a target holds NaN or infinity or has another shape, or
            there is no batch.
    """
    return Observation(columns=_predicted(context, name))


def _predicted(context: Context, name: str) -> Iterator[dict[str, Tensor]]:
    subject = context.subjects[name]
    predict = subject.predict
    assert context.noised is not None
    assert predict is not None

    def look(batch: Noised) -> tuple[Noised, Tensor]:
        prediction = predict(batch.call) if subject.answer is None else subject.answer(batch)
        return batch, prediction.detach().cpu().float()

    count = 0
    for batch, prediction in side_by_side(look, context.noised(), context.workers):
        _check_batch(f"subject {name!r}", prediction, batch, count)
        rows = {"prediction": prediction}
        if batch.target is not None:
            change = prediction.double() - batch.target.detach().cpu().double()
            rows["error"] = change.square().flatten(1).mean(1)
        rows["bucket"] = torch.full((len(prediction),), batch.bucket, dtype=torch.long)
        rows["sample_ids"] = batch.sample_ids.detach().cpu()
        count += 1
        context.progress(f"denoising error of {name}", count, 0)
        yield rows
    if not count:
        raise ValueError("metric 'denoising': Context.noised yielded no batch; give held-out data")


def _check_batch(subject: str, prediction: Tensor, batch: Noised, index: int) -> None:
    """Raise ValueError unless prediction and target, if there is one, are finite and of one shape ``(B, C, H, W)``."""
    where = f"timestep bucket {batch.bucket}"
    place = f"{subject}, metric 'denoising', batch {index}, {where}"
    if batch.target is not None:
        target = batch.target.detach().cpu()
        _check(target, f"metric 'denoising', target of batch {index}, {where}", batch.sample_ids)
        if prediction.shape != target.shape:
            raise ValueError(
                f"{place}: the prediction has shape {tuple(prediction.shape)}, the target {tuple(target.shape)}; "
                "they must agree (a learned variance is to be dropped)"
            )
    _check(prediction, f"{place}, prediction", batch.sample_ids)


def _check(values: Tensor, place: str, sample_ids: Tensor) -> None:
    """Raise ValueError if `values` ``(B, ...)`` holds NaN or infinity, naming the first sample that does."""
    bad = ~torch.isfinite(values).flatten(1).all(1)
    if bool(bad.any()):
        first = int(sample_ids[int(bad.nonzero()[0])])
        raise ValueError(
            f"{place}: NaN or infinity in {int(bad.sum())} of {len(values)} samples, first in sample {first}; check "
            "the model's weights and its dtype (float16 overflows)"
        )


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the denoising error by bucket and the excess error, with intervals.

    Raises:
        ValueError: If the subjects were observed on different rows, which only old observations can be.
    """
    found = {name: seen[name]["denoising"].tensors for name in context.subjects}
    reference = found[context.reference]
    for name, tensors in found.items():
        if not _are_of_the_same(tensors, reference):
            raise ValueError(
                f"subject {name!r}, metric 'denoising': it was observed on other images, timesteps or sizes than "
                f"{context.reference!r}; observe both anew"
            )
    return {name: _result(tensors, reference) for name, tensors in found.items()}


def _are_of_the_same(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> bool:
    """Tell whether two subjects were shown the same rows, and predict the same size."""
    return tensors["prediction"].shape == reference["prediction"].shape and all(
        torch.equal(tensors[key], reference[key]) for key in ("bucket", "sample_ids")
    )


def _result(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the numbers of one subject."""
    bucket, images = tensors["bucket"], tensors["sample_ids"]
    change, power = _squares(tensors["prediction"], reference["prediction"])
    chosen = [bucket == b for b in range(int(bucket.max()) + 1)]

    def intervals(numerator: Tensor, denominator: Tensor) -> list[list[float] | None]:
        return [_clustered(numerator[rows], denominator[rows], images[rows]) for rows in chosen]

    errors: dict[str, Any] = {}
    if (error := tensors.get("error")) is not None:
        base = reference["error"]
        errors = {
            "denoising_error": [float(error[rows].mean()) if bool(rows.any()) else None for rows in chosen],
            "denoising_error_by_bucket_ci95": intervals(error, torch.ones_like(error)),
            "denoising_error_ratio_by_bucket_ci95": intervals(error, base),
            "denoising_error_mean": float(error.mean()),
            "denoising_error_ci95": _clustered(error, torch.ones_like(error), images),
            **_paired(error, base, images),
        }
    return {
        **errors,
        "denoising_samples": len(bucket),
        "denoising_images": len(images.unique()),
        "excess_error": _share(change, power),
        "excess_error_ci95": _clustered(change, power, images),
        **_told_apart(change, power, images),
        "excess_error_by_bucket": [_share(change[rows], power[rows]) for rows in chosen],
        "excess_error_by_bucket_ci95": intervals(change, power),
    }


def _squares(prediction: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``|eps - eps_ref|^2`` and ``|eps_ref|^2`` of every row, float64 ``(R,)`` each."""
    both = zip(prediction.split(ROWS), reference.split(ROWS), strict=True)
    change = filled(len(prediction), (_square(ours.double() - theirs.double()) for ours, theirs in both))
    return change, filled(len(reference), (_square(rows.double()) for rows in reference.split(ROWS)))


def _square(rows: Tensor) -> Tensor:
    return rows.square().flatten(1).sum(1)


def _share(change: Tensor, power: Tensor) -> float | None:
    """Return ``sum change / sum power``, or None if the reference predicts nothing but zeros."""
    return float(change.sum() / power.sum()) if float(power.sum()) > 0 else None


def _clustered(numerator: Tensor, denominator: Tensor, images: Tensor) -> list[float] | None:
    """Return the interval of ``sum numerator / sum denominator`` with the rows summed by image first."""
    if float(denominator.sum()) <= 0:
        return None
    return ratio_interval(*_by_image(images, numerator, denominator))


def _paired(error: Tensor, base: Tensor, images: Tensor) -> dict[str, Any]:
    """Return the ratio of a denoising error to the reference's, on the same images and noise."""
    ours, theirs = _by_image(images, error, base)
    if min(float(ours.sum()), float(theirs.sum())) <= 0 or len(ours) < 2:
        return {}
    ratio, standard = ratio_error(ours, theirs)
    return {
        "denoising_error_ratio": ratio,
        "denoising_error_ratio_ci95": ratio_interval(ours, theirs),
        **power_of_ratio("denoising_error_mean", standard / ratio, len(ours)),
    }


def _told_apart(change: Tensor, power: Tensor, images: Tensor) -> dict[str, Any]:
    """Return what change of the excess error these images could have told apart; see `eval.power`."""
    ours, theirs = _by_image(images, change, power)
    if float(theirs.sum()) <= 0 or len(ours) < 2:
        return {}
    share, error = ratio_error(ours, theirs)
    return power_of_difference("excess_error", error, share, len(ours))


def _by_image(images: Tensor, *rows: Tensor) -> list[Tensor]:
    """Return for each of several values by row their sums by image."""
    unique, cluster = images.unique(return_inverse=True)
    zeros = torch.zeros(len(unique), dtype=torch.float64)
    return [zeros.index_add(0, cluster, values) for values in rows]
