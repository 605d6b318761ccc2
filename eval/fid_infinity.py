"""Fréchet distance at infinitely many samples (Chong and Forsyth 2020, arXiv 1911.07023, section 4).

The bias of the distance falls as 1/N in the number N of generated images. Distances of subsets of 15 sizes are fitted
by a line over 1/N; its intercept is the estimate. So models, and runs of different sizes, can be compared whose biases
differ. The number of real images stays as it is, and with it their part of the bias. The line holds where N is well
above the number of features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eval.fid import WIDE, Reference, check_pair, paired_ratio
from eval.image_features import features_of
from eval.intervals import around
from eval.media import IMAGE
from eval.observation import Seen
from eval.power import power_of_ratio
from eval.types import Context

READS, READS_DATA = ("samples", "image_features"), ("image_features",)
MEDIA = (IMAGE,)
SIZES, SMALLEST = 15, 0.1
"""How many sizes, evenly from which share of all images on, or from more images than features."""
MIN_IMAGES = 30
RESAMPLES = 20


def sizes(count: int, width: int) -> list[int]:
    """Return the numbers of images at which the distance is measured: if possible all above the number of features."""
    first = max(SMALLEST * count, min(width + 1, count / 2), 2)
    return torch.linspace(first, count, SIZES).round().long().tolist()


def extrapolated(
    reference: Reference, generated: Tensor, generator: torch.Generator, rows: Tensor | None = None
) -> tuple[float, float]:
    """Return the intercept of the distance over 1/N, and its slope.

    Args:
        reference: The real set.
        generated: Features ``(N, d)``.
        generator: Draws the subsets, without replacement; equal ones draw equal rows, so that subjects can be paired.
        rows: Which rows of the generated features count, with repetition; None takes each once.
    """
    rows = torch.arange(len(generated)) if rows is None else rows
    inverse, found = [], []
    for size in sizes(len(rows), generated.shape[1]):
        chosen = rows[torch.randperm(len(rows), generator=generator)[:size]]
        counts = torch.bincount(chosen, minlength=len(generated)).double()
        inverse.append(1 / size)
        found.append(reference.distance(generated, counts))
    x, y = torch.tensor(inverse, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return float(y.mean()) - slope * float(x.mean()), slope


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the extrapolated distance, and its paired ratio to the reference.

    Intervals are ± 1.96 bootstrap standard errors over the generated images, each resample extrapolated anew; above 256
    features that would take too long, and none is given.
    """
    real, generated, facts = features_of(context, seen)
    reference, width = Reference(real), real.shape[1]
    base: tuple[float, Tensor] | None = None
    results: dict[str, dict[str, Any]] = {}
    for name, features in generated.items():
        check_pair(real, features)
        n, first = len(features), sizes(len(features), width)[0]
        generator = torch.Generator().manual_seed(context.seed)
        point, slope = extrapolated(reference, features, generator)
        draws = torch.tensor(
            [
                extrapolated(reference, features, generator, torch.randint(n, (n,), generator=generator))[0]
                for _ in range(RESAMPLES if width <= WIDE else 0)
            ],
            dtype=torch.float64,
        )
        base = base or (point, draws)  # the reference is the first
        results[name] = {
            "frechet_infinity": point,
            "frechet_infinity_slope": slope,
            "frechet_infinity_name": f"{facts['frechet_name']} at N = ∞",
            "frechet_infinity_sizes": sizes(n, width),
            "frechet_infinity_warning": None
            if first > width
            else f"the smallest subset has {first} images, not more than the {width} features: no straight line",
            **_uncertain(point, draws, *base, samples=n),
        }
        context.progress("Fréchet distance at N = ∞", len(results), len(generated))
    return results


def _uncertain(
    point: float, draws: Tensor, base: float, base_draws: Tensor, *, samples: int
) -> dict[str, Any]:
    """Return interval, ratio and power of an extrapolated distance, as far as there are resamples."""
    if not len(draws):
        known = min(point, base) > 0
        return {"frechet_infinity_ratio": point / base if known else None}
    ratio, error = paired_ratio(point, draws, base, base_draws)
    bounds = None if ratio is None else [ratio * math.exp(end) for end in around(0.0, error)]
    return {
        "frechet_infinity_ci95": around(point, float(draws.std())),
        "frechet_infinity_ratio": ratio,
        "frechet_infinity_ratio_ci95": bounds,
        **power_of_ratio("frechet_infinity", error, samples),
    }
