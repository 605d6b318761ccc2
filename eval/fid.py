"""Fréchet distance between real and generated images (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    d^2 = |mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^(1/2))

The estimate is biased upwards at small N, and by how much depends on the model (Bińkowski et al. 2018, arXiv
1801.01401; Chong and Forsyth 2020, arXiv 1911.07023): compare only values of the same N, the same real images and
the same features, and below 10,000 images read the kernel distance (`eval.kid`) beside it. The bias is largest where
there are fewer images than features; the result carries a warning then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eval.image_features import features_of
from eval.intervals import NORMAL_95
from eval.media import IMAGE
from eval.observation import Seen
from eval.types import Context

READS = ("samples", "image_features")
MEDIA = (IMAGE,)
READS_DATA = ("image_features",)
CHUNK = 4096
WIDE = 256


class Precomputed(nn.Identity):
    """Takes features ``(B, d)`` in place of images, so that torchmetrics uses those computed once for all metrics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the squared Fréchet distance of two sets of features, ``(M, d)`` and ``(N, d)``, in float64.

    Raises:
        ValueError: If a set has fewer than two rows or the widths differ.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    check_pair(real, generated)
    # Evaluation may run on rank 0 alone: syncing over ranks would wait for the others for ever.
    metric = FrechetInceptionDistance(
        feature=Precomputed(real.shape[1]), sync_on_compute=False, distributed_available_fn=lambda: False
    )
    for chunk in real.split(CHUNK):
        metric.update(chunk.double(), real=True)
    for chunk in generated.split(CHUNK):
        metric.update(chunk.double(), real=False)
    return float(metric.compute())


def bootstrap_frechet(
    real: Tensor, generated: Tensor, *, resamples: int, generator: torch.Generator
) -> Tensor:
    """Return the Fréchet distance of `resamples` bootstrap samples of the generated features.

    The real set stays as it is: the interval is about the distance to *these* real images. A resample has the bias of
    a smaller set, so only the spread of these values is of use, not their place. Equally seeded generators draw equal
    rows, so that subjects can be paired.

    Returns:
        float64 ``(resamples,)``.
    """
    n = len(generated)
    covariance = torch.cov(real.double().T).reshape(real.shape[1], -1)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # S_r^(1/2), (d, d)
    centred = generated.double() - real.double().mean(0)  # (N, d)
    projected = centred @ root
    distances = torch.empty(resamples, dtype=torch.float64)
    for i in range(resamples):
        rows = torch.randint(n, (n,), generator=generator)
        counts = torch.bincount(rows, minlength=n).double()
        shift = counts @ centred / n  # mu_g - mu_r
        trace = (counts @ centred.square().sum(1) - n * shift @ shift) / (n - 1)  # tr S_g
        cross = _trace_of_root(counts.sqrt()[:, None] * (projected - shift @ root)) / math.sqrt(n - 1)
        distances[i] = shift @ shift + covariance.trace() + trace - 2 * cross
    return distances


def _trace_of_root(matrix: Tensor) -> Tensor:
    """Return ``tr (Z^T Z)^(1/2)`` of Z ``(n, d)`` from the smaller of its two Gram matrices.

    With Z the centred rows of the generated features times ``S_r^(1/2)`` this is ``tr (S_r S_g)^(1/2) (n - 1)^(1/2)``.
    """
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()


def check_pair(real: Tensor, generated: Tensor) -> None:
    """Raise ValueError unless both sets have at least two rows of one width."""
    shapes = [tuple(real.shape), tuple(generated.shape)]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"features must be (n, d) with n >= 2 and one d, found real {shapes[0]} and generated {shapes[1]}; give "
            "more images, or features of one network"
        )


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the distance to the real images, with its interval.

    ``frechet_ci95`` is the estimate ± 1.96 bootstrap standard errors over the generated images (not below 0).
    ``frechet_ratio`` is to the reference; its interval pairs the subjects' resamples by sample id, on a log scale.
    """
    real, generated, facts = features_of(context, seen)
    width = real.shape[1]
    resamples = 100 if width <= WIDE else 20
    base: tuple[float, Tensor] | None = None
    results: dict[str, dict[str, Any]] = {}
    for name, features in generated.items():
        point, n = frechet_distance(real, features), len(features)
        singular = f"covariance is singular ({len(real)} real and {n} generated images, {width} features)"
        generator = torch.Generator().manual_seed(context.seed)
        draws = bootstrap_frechet(real, features, resamples=resamples, generator=generator)
        reach = NORMAL_95 * float(draws.std())
        base = base or (point, draws)  # the reference is the first
        ratio, ratio_interval = _ratio(point, draws, *base)
        results[name] = {
            "frechet": point,
            "frechet_ci95": [max(point - reach, 0.0), point + reach],
            "frechet_ratio": ratio,
            "frechet_ratio_ci95": ratio_interval,
            "frechet_name": facts["frechet_name"],
            "frechet_mode": facts["mode"],
            "frechet_features": facts["name"],
            "frechet_features_sha256": facts["sha256"],
            "frechet_width": width,
            "frechet_num_real": len(real),
            "frechet_num_generated": n,
            "frechet_resamples": resamples,
            "frechet_warning": None if min(n, len(real)) > width else f"n ≤ d: {singular}",
        }
        context.progress("Fréchet distance", len(results), len(generated))
    return results


def _ratio(
    point: float, draws: Tensor, base: float, base_draws: Tensor
) -> tuple[float | None, list[float] | None]:
    """Return a ratio of distances and its interval; None where a distance is not clearly above zero."""
    if min(point, base, float(draws.min()), float(base_draws.min())) <= 1e-9 * max(point, base, 1e-9):
        return None, None
    ratio = point / base
    factor = math.exp(NORMAL_95 * float((draws / base_draws).log().std()))
    return ratio, [ratio / factor, ratio * factor]
