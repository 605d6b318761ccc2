"""Kernel distance: unbiased squared MMD with a cubic kernel (Bińkowski et al. 2018, arXiv 1801.01401, section 4).

    k(x, y) = (x . y / d + 1)^3,   mean and standard deviation over random subsets

Unbiased at every N, so the one to read where there are few images; it may fall slightly below zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eval.fid import check_pair
from eval.image_features import features_of
from eval.intervals import around
from eval.media import IMAGE
from eval.mmd import Parts, parts, standard_error
from eval.observation import Seen
from eval.power import power_of_difference
from eval.types import Context

READS = ("samples", "image_features")
MEDIA = (IMAGE,)
READS_DATA = ("image_features",)
MIN_IMAGES = 4  # so that a subset of half of them has a variance
SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(
    real: Tensor, generated: Tensor, *, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 0
) -> tuple[float, float, int]:
    """Return the kernel distance of two sets of features, ``(M, d)`` and ``(N, d)``, in float64.

    Args:
        real: Features of real images.
        generated: Features of generated images.
        subsets: Number of random subsets.
        subset_size: Rows of each. None takes 1000, or half of the smaller set if that is less: a subset of all rows
            would be the same every time, and its standard deviation a misleading zero.
        seed: Seeds the subsets; torch's global generator is left as it was.

    Returns:
        Mean and standard deviation over the subsets, and the subset size.

    Raises:
        ValueError: If the sets are too small for the subset size, or their widths differ.
    """
    check_pair(real, generated)
    size = _size_of(real, generated, subset_size)
    found = subset_distances(real, generated, subsets=subsets, subset_size=size, seed=seed)
    return float(found.mean()), float(found.std(unbiased=False)), size


def subset_distances(
    real: Tensor, generated: Tensor, *, subsets: int = SUBSETS, subset_size: int, seed: int = 0
) -> Tensor:
    """Return the kernel distance of random subsets, float64 ``(subsets,)``; only their rows are held in float64.

    Equal seeds and numbers of rows draw equal rows, so that subjects can be paired.
    """
    from torchmetrics.image.kid import poly_mmd

    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(subsets):
        ours, theirs = (
            features[torch.randperm(len(features), generator=generator)[:subset_size]].double()
            for features in (real, generated)
        )
        found.append(poly_mmd(ours, theirs))
    return torch.stack(found)


def _size_of(real: Tensor, generated: Tensor, asked: int | None) -> int:
    """Return the rows of a subset; a size that does not fit is a ValueError."""
    fewest = min(len(real), len(generated))
    size = min(SUBSET_SIZE, fewest // 2) if asked is None else asked
    if size < 2 or size > fewest:
        raise ValueError(
            f"kernel distance: subset size {size} does not fit {len(real)} real and {len(generated)} generated images; "
            f"it must be from 2 to the smaller number (at least {MIN_IMAGES} images where the size is left to us)"
        )
    return size


def cubic(rows: Tensor, others: Tensor) -> Tensor:
    """Return ``(x . y / d + 1)^3`` of all pairs of rows."""
    return (rows @ others.T / rows.shape[1] + 1) ** 3


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the kernel distance to the real images, and its paired difference to the reference.

    Intervals are ± 1.96 standard errors over the generated images (`eval.mmd`) and over the draw of the subsets.
    """
    real, generated, facts = features_of(context, seen)
    base: tuple[Tensor, Parts] | None = None
    results = {}
    for name, features in generated.items():
        size = _size_of(real, features, None)
        found = subset_distances(real, features, subset_size=size, seed=context.seed)
        owed = parts(cubic, real, features)
        base = base or (found, owed)  # the reference is the first
        mean, apart = float(found.mean()), found - base[0]
        error = math.hypot(standard_error(owed), float(found.std()) / math.sqrt(SUBSETS))
        paired = math.hypot(standard_error(owed, base[1]), float(apart.std()) / math.sqrt(SUBSETS))
        results[name] = {
            "kernel": mean,
            "kernel_ci95": around(mean, error),
            "kernel_difference": float(apart.mean()),
            "kernel_difference_ci95": around(float(apart.mean()), paired),
            **power_of_difference("kernel", paired, float(base[0].mean()), len(features)),
            "kernel_std": float(found.std(unbiased=False)),
            "kernel_name": facts["kernel_name"],
            "kernel_subsets": SUBSETS,
            "kernel_subset_size": size,
        }
        context.progress("kernel distance", len(results), len(generated))
    return results
