"""Kernel distance: unbiased squared MMD with a cubic kernel (Bińkowski et al. 2018, arXiv 1801.01401, section 4).

    k(x, y) = (x . y / d + 1)^3,   mean and standard deviation over random subsets

Unbiased at every N, so the one to read where there are few images; it may fall slightly below zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eval.fid import Precomputed, check_pair
from eval.image_features import features_of
from eval.media import IMAGE
from eval.observation import Seen
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
    """Return the kernel distance of two sets of features, ``(M, d)`` and ``(N, d)``, by torchmetrics in float64.

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
    from torchmetrics.image.kid import KernelInceptionDistance

    check_pair(real, generated)
    fewest = min(len(real), len(generated))
    size = min(SUBSET_SIZE, fewest // 2) if subset_size is None else subset_size
    if size < 2 or size > fewest:
        raise ValueError(
            f"kernel distance: subset size {size} does not fit {len(real)} real and {len(generated)} generated images; "
            f"it must be from 2 to the smaller number (at least {MIN_IMAGES} images where the size is left to us)"
        )
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it says that it keeps all features
        metric = KernelInceptionDistance(
            feature=Precomputed(real.shape[1]),
            subsets=subsets,
            subset_size=size,
            sync_on_compute=False,
            distributed_available_fn=lambda: False,
        )
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return float(mean), float(std), size


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the kernel distance to the real images."""
    real, generated, facts = features_of(context, seen)
    results = {}
    for name, features in generated.items():
        mean, std, size = kernel_distance(real, features, seed=context.seed)
        results[name] = {
            "kernel": mean,
            "kernel_std": std,
            "kernel_name": facts["kernel_name"],
            "kernel_subsets": SUBSETS,
            "kernel_subset_size": size,
        }
        context.progress("kernel distance", len(results), len(generated))
    return results
