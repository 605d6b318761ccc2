"""Consistency: how alike two models' images from the same noise are.

SSIM of Wang et al. 2004 (IEEE TIP 13(4), eq. 13), by torchmetrics, and mean squared error, image by image against the
reference. High consistency is not quality: a model may draw other images that are as good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eval.intervals import mean_interval
from eval.observation import Seen
from eval.types import Context

READS = ("images",)
WINDOW = 11
SIGMA = 1.5


def ssim_window(height: int, width: int) -> tuple[int, float]:
    """Return the size and sigma of the Gaussian SSIM window that fits an image.

    It is the paper's 11 pixels with sigma 1.5, or the largest odd size that fits, with sigma in proportion (8x8 pixels:
    7 and 0.95). torchmetrics derives the size from sigma: ``2 * int(3.5 * sigma + 0.5) + 1``.
    """
    side = min(height, width, WINDOW)
    size = side if side % 2 else side - 1
    return size, SIGMA * size / WINDOW


def image_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the SSIM of every image with its reference, float64 ``(N,)``, both uint8 ``(N, C, H, W)``."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    size, sigma = ssim_window(images.shape[-2], images.shape[-1])
    similarity = structural_similarity_index_measure(
        images.double(), reference.double(), sigma=sigma, kernel_size=size, data_range=255.0, reduction="none"
    )
    assert isinstance(similarity, Tensor)
    return similarity


def image_mse(images: Tensor, reference: Tensor) -> Tensor:
    """Return the mean squared error of every image, of pixel values in [0, 1]; float64 ``(N,)``."""
    return (images.double() / 255 - reference.double() / 255).square().flatten(1).mean(1)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject mean SSIM and MSE to the reference's images of the same sample ids, with intervals."""
    reference = seen[context.reference]["images"].tensors["images"]
    window, _ = ssim_window(reference.shape[-2], reference.shape[-1])
    results = {}
    for name in context.subjects:
        images = seen[name]["images"].tensors["images"]
        if images.shape != reference.shape:
            raise ValueError(
                f"subject {name!r}, metric 'consistency': images of shape {tuple(images.shape)} cannot be compared "
                f"with the reference's {tuple(reference.shape)}; sample all subjects at one size"
            )
        pairs = list(zip(images.split(context.batch_size), reference.split(context.batch_size), strict=True))
        ssim, mse = (torch.cat([f(a, b) for a, b in pairs]) for f in (image_ssim, image_mse))
        results[name] = {
            "ssim": float(ssim.mean()),
            "ssim_ci95": mean_interval(ssim),
            "ssim_window": window,
            "mse": float(mse.mean()),
            "mse_ci95": mean_interval(mse),
        }
    return results
