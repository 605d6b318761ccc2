"""Consistency: how alike two models' samples from the same noise are.

Images and the frames of videos: SSIM of Wang et al. 2004 (IEEE TIP 13(4), eq. 13), by torchmetrics, and mean squared
error, sample by sample against the reference. Sounds: the error of the waveform, ``|x - y|^2 / |y|^2``, and spectral
convergence, ``||X| - |Y|| / |Y|`` of the spectrograms (Arik et al. 2019, IEEE SPL 26(1), eq. 5), y and Y the
reference's; a silent reference makes them the plain error. High consistency is not quality: a model may draw other
samples that are as good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eval.intervals import mean_interval
from eval.media import IMAGE, SOUND, VIDEO, medium_of, spectrogram
from eval.observation import Seen, filled
from eval.power import power_of_difference
from eval.types import Context

READS = ("samples",)
WINDOW = 11
SIGMA = 1.5
FRAMES = 16
"""Frames of a video that are compared at once."""


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


def over_frames(measure: Callable[[Tensor, Tensor], Tensor], videos: Tensor, reference: Tensor) -> Tensor:
    """Return the mean over frames of what `measure` says of images; float64 ``(N,)`` of ``(N, F, C, H, W)``."""
    means = []
    for video, other in zip(videos, reference, strict=True):
        parts = zip(video.split(FRAMES), other.split(FRAMES), strict=True)
        means.append(torch.cat([measure(a, b) for a, b in parts]).mean())
    return torch.stack(means)


def waveform_error(sounds: Tensor, reference: Tensor) -> Tensor:
    """Return the squared error of every sound over the reference's energy; float64 ``(N,)``."""
    sounds, reference = sounds.double().flatten(1), reference.double().flatten(1)
    return (sounds - reference).square().sum(1) / _or_one(reference.square().sum(1))


def spectral_error(sounds: Tensor, reference: Tensor) -> Tensor:
    """Return the spectral convergence of every sound; float64 ``(N,)``."""
    found, wanted = (spectrogram(each).flatten(1) for each in (sounds, reference))
    return (found - wanted).norm(dim=1) / _or_one(wanted.norm(dim=1))


def _or_one(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1.0)


LIKENESSES = ("ssim",)
"""Measures that grow with likeness; the others are distances, of which power is said."""
MEASURES: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    IMAGE: {"ssim": image_ssim, "mse": image_mse},
    VIDEO: {"ssim": partial(over_frames, image_ssim), "mse": partial(over_frames, image_mse)},
    SOUND: {"waveform_error": waveform_error, "spectral_error": spectral_error},
}
"""What is measured, by medium."""


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the means of what is measured against the reference's samples, with intervals."""
    reference = seen[context.reference]["samples"].tensors["samples"]
    medium = medium_of(reference)
    results: dict[str, dict[str, Any]] = {}
    for name in context.subjects:
        samples = seen[name]["samples"].tensors["samples"]
        check_alike(name, "consistency", f"{medium}s", samples, reference)
        pairs = list(zip(samples.split(context.batch_size), reference.split(context.batch_size), strict=True))
        results[name] = {} if medium == SOUND else {"ssim_window": ssim_window(*reference.shape[-2:])[0]}
        for key, measure in MEASURES[medium].items():
            values = filled(len(samples), (measure(a, b) for a, b in pairs))
            results[name] |= mean_of(key, values, power=key not in LIKENESSES)
    return results


def check_alike(name: str, metric: str, what: str, ours: Tensor, reference: Tensor) -> None:
    """Raise ValueError if what a subject shows has not the shape of what the reference shows."""
    if ours.shape != reference.shape:
        raise ValueError(
            f"subject {name!r}, metric {metric!r}: {what} of shape {tuple(ours.shape)} cannot be compared with the "
            f"reference's {tuple(reference.shape)}; sample all subjects at one size"
        )


def mean_of(key: str, values: Tensor, *, power: bool = True) -> dict[str, Any]:
    """Return the mean of a distance of samples to the reference's under `key`, its interval, and its power if asked."""
    found: dict[str, Any] = {key: float(values.mean()), f"{key}_ci95": mean_interval(values)}
    if power and len(values) > 1:
        error = float(values.std()) / len(values) ** 0.5
        found |= power_of_difference(key, error, found[key], len(values))
    return found
