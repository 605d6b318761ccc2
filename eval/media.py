"""What models make: images uint8 (N, C, H, W), videos uint8 (N, F, C, H, W), sounds float (N, channels, samples)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGE, VIDEO, SOUND = "image", "video", "sound"
_MEDIA = {(torch.uint8, 4): IMAGE, (torch.uint8, 5): VIDEO}

SHOWN_FRAMES = 4
WINDOW = 1024
"""Samples in a frame of a spectrogram; shorter sounds have one frame of the largest power of two that fits."""
DYNAMIC_RANGE = 80.0
"""Decibels below a sound's loudest bin that a picture shows."""
PICTURE = (96, 256)
"""Most rows and columns of a picture of a sound."""


def medium_of(samples: Tensor, place: str = "samples") -> str:
    """Return which of the three `samples` are; what is none of them is a ValueError, NaN named as such."""
    if samples.is_floating_point() and not bool(torch.isfinite(samples).all()):
        raise ValueError(
            f"{place} hold NaN or infinity; check the model's weights and its dtype (float16 overflows)"
        )
    found = _MEDIA.get((samples.dtype, samples.ndim))
    found = SOUND if samples.is_floating_point() and samples.ndim == 3 else found
    if found is None or samples.numel() == 0:
        raise ValueError(
            f"{place} must be images, rounded uint8 (N, C, H, W), videos, uint8 (N, F, C, H, W), or sounds, float "
            f"(N, channels, samples), with N > 0, found {samples.dtype} {tuple(samples.shape)}"
        )
    return found


def spectrogram(sounds: Tensor) -> Tensor:
    """Return the magnitudes of a short-time Fourier transform, float64 (N, channels, frequencies, frames).

    Hann windows of `WINDOW` samples, a quarter of that apart.
    """
    size = min(WINDOW, 1 << (sounds.shape[-1].bit_length() - 1))
    window = (
        torch.hann_window(size, dtype=torch.float64) if size > 2 else torch.ones(size, dtype=torch.float64)
    )
    found = torch.stft(
        sounds.double().flatten(0, 1),
        size,
        hop_length=max(size // 4, 1),
        window=window,
        center=False,
        return_complex=True,
    )
    return found.abs().unflatten(0, sounds.shape[:2])


def pictures(samples: Tensor) -> Tensor:
    """Return what a page shows of each sample, uint8 (N, C, H, W).

    An image is itself; of a video `SHOWN_FRAMES` frames from the first to the last stand side by side; of a sound it is
    the spectrogram: time to the right, frequency upwards in steps of equal ratio, the loudest black.
    """
    medium = medium_of(samples)
    if medium == IMAGE:
        return samples
    if medium == VIDEO:
        frames = torch.linspace(0, samples.shape[1] - 1, min(SHOWN_FRAMES, samples.shape[1])).round().long()
        gap = max(samples.shape[-1] // 64, 1)
        strips = F.pad(samples[:, frames], (0, gap), value=255).unbind(1)
        return torch.cat(strips, -1)[..., :-gap]
    return torch.cat([_drawn(sound[None]) for sound in samples])


def _drawn(sound: Tensor) -> Tensor:
    """Return the picture of one sound, uint8 (1, 1, H, W)."""
    power = spectrogram(sound).square().mean(1, keepdim=True)
    level = 10 * (power / power.max().clamp(min=1e-30)).clamp(min=1e-30).log10()
    bins, frames = level.shape[-2:]
    rows, columns = min(bins, PICTURE[0]), min(frames, PICTURE[1])
    ends = torch.logspace(0, math.log10(bins), rows).long().clamp(1, bins)
    bands = [
        level[..., max(end - max(end // 16, 1), 0) : end, :].amax(-2, keepdim=True) for end in ends.tolist()
    ]
    shown = F.adaptive_max_pool2d(torch.cat(bands, -2), (rows, columns))
    share = (1 + shown / DYNAMIC_RANGE).clamp(0, 1).flip(-2)
    return ((1 - share) * 255).round().to(torch.uint8)
