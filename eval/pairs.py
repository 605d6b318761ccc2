"""Pairs: how far each sample is from the reference's sample of the same noise, in pixels and in features, on one scale.

    E = mean |x_i - y_i|^2 / (2 mean |y_i - mean y|^2)

with y_i the reference's sample i. Two unrelated draws of the reference are at 1, equal samples at 0, in pixels as in
features. Pruning often keeps what a picture shows and shifts its pixels: then the features' E is far below that of the
pixels. Neither says how good the samples are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.consistency import check_alike
from eval.intervals import ratio_error, ratio_interval
from eval.media import IMAGE
from eval.observation import Seen, filled
from eval.power import power_of_difference
from eval.types import Context

READS = ("samples", "image_features")
MEDIA = (IMAGE,)
MIN_IMAGES = 2
ROWS = 256
SCALES: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "pair_pixels": ("samples", "samples", lambda x: x.double().flatten(1) / 255),
    "pair_features": ("image_features", "features", lambda x: x.double()),
}
"""By name of the result: where the values are, and how rows of them become float64 ``(B, d)``."""


def pair_errors(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``|x_i - y_i|^2`` and ``2 |y_i - mean y|^2`` of all rows of two tensors, float64 ``(N,)`` each."""
    return _pairs(samples, reference, lambda x: x.double().flatten(1))


def _pairs(samples: Tensor, reference: Tensor, values: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    total = torch.zeros_like(values(reference[:1])[0])
    for part in reference.split(ROWS):
        total += values(part).sum(0)
    mean = total / len(reference)
    both = zip(samples.split(ROWS), reference.split(ROWS), strict=True)
    apart = filled(len(samples), ((values(ours) - values(theirs)).square().sum(1) for ours, theirs in both))
    around = ((values(part) - mean).square().sum(1) for part in reference.split(ROWS))
    return apart, 2 * filled(len(reference), around)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the error of pixels and that of features, with intervals over samples and their power.

    A reference all of whose samples are equal has no spread: then the errors are left out.
    """
    results: dict[str, dict[str, Any]] = {name: {} for name in context.subjects}
    for key, (what, tensor, values) in SCALES.items():
        reference = seen[context.reference][what].tensors[tensor]
        for name, result in results.items():
            ours = seen[name][what].tensors[tensor]
            check_alike(name, "pairs", tensor, ours, reference)
            apart, spread = _pairs(ours, reference, values)
            if float(spread.sum()) <= 0:
                continue
            error, standard = ratio_error(apart, spread)
            result |= {key: error, f"{key}_ci95": ratio_interval(apart, spread)}
            result |= power_of_difference(key, standard, error, len(ours))
        context.progress("pairs", len(results), len(results))
    for name, result in results.items():
        if "pair_features" in result:
            result["pair_network"] = seen[name]["image_features"].facts["name"]
    return results
