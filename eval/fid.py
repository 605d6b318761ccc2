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
from eval.power import power_of_ratio
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
    reference, n = Reference(real), len(generated)
    distances = torch.empty(resamples, dtype=torch.float64)
    for i in range(resamples):
        rows = torch.randint(n, (n,), generator=generator)
        distances[i] = reference.distance(generated, torch.bincount(rows, minlength=n).double())
    return distances


class Reference:
    """A real set of features ``(M, d)``, to which distances of many samples of another set are measured."""

    def __init__(self, real: Tensor) -> None:
        self.mean, self.covariance = moments(real)
        values, vectors = torch.linalg.eigh(self.covariance)
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # S_r^(1/2), (d, d)

    def distance(self, generated: Tensor, counts: Tensor) -> float:
        """Return the distance to rows ``(N, d)`` of which each stands `counts` ``(N,)`` times.

        Rows are read in parts, and read anew for every call, so that no set is held in float64 as a whole.
        """
        n, width = float(counts.sum()), len(self.mean)
        shift = torch.zeros(width, dtype=torch.float64)  # mu_g - mu_r
        for part, weights in zip(generated.split(CHUNK), counts.split(CHUNK), strict=True):
            shift += weights @ (part.double() - self.mean) / n
        if n >= width:
            gram = torch.zeros(width, width, dtype=torch.float64)
            for part, weights in zip(generated.split(CHUNK), counts.split(CHUNK), strict=True):
                centred = weights.sqrt()[:, None] * (part.double() - self.mean - shift)
                gram.addmm_(centred.T, centred)
            trace = float(gram.trace()) / (n - 1)  # tr S_g
            gram = self.root @ gram @ self.root
        else:  # of the two Gram matrices the smaller one
            taken = counts > 0
            centred = counts[taken].sqrt()[:, None] * (generated[taken].double() - self.mean - shift)
            trace = float(centred.square().sum()) / (n - 1)
            projected = centred @ self.root
            gram = projected @ projected.T
        cross = float(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()) / math.sqrt(n - 1)
        return (
            float(shift @ shift) + float(self.covariance.trace()) + trace - 2 * cross
        )  # cross: tr (S_r S_g)^(1/2)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean ``(d,)`` and covariance ``(d, d)`` of at least two rows, in float64 from running sums."""
    n, width = features.shape
    mean = torch.zeros(width, dtype=torch.float64)
    for part in features.split(CHUNK):
        mean += part.double().sum(0) / n
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for part in features.split(CHUNK):
        centred = part.double() - mean
        covariance.addmm_(centred.T, centred)
    return mean, covariance / (n - 1)


def check_pair(real: Tensor, generated: Tensor) -> None:
    """Raise ValueError unless both sets have at least two rows of one width."""
    shapes = [tuple(real.shape), tuple(generated.shape)]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"features must be (n, d) with n >= 2 and one d, found real {shapes[0]} and generated {shapes[1]}; give "
            "more images, or features of one network"
        )


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the distance to the real images, with its interval; see `frechet_results`."""
    return frechet_results(context, *features_of(context, seen), key="frechet")


def frechet_results(
    context: Context, real: Tensor, generated: Mapping[str, Tensor], facts: Mapping[str, Any], *, key: str
) -> dict[str, dict[str, Any]]:
    """Return for every subject its Fréchet distance under the name `key`, with interval, paired ratio and power.

    ``{key}_ci95`` is the estimate ± 1.96 bootstrap standard errors over the generated images (not below 0).
    ``{key}_ratio`` is to the reference; its interval pairs the subjects' resamples by sample id, on a log scale.
    """
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
        ratio, error = paired_ratio(point, draws, *base)
        factor = math.exp(NORMAL_95 * error)
        results[name] = {
            key: point,
            f"{key}_ci95": [max(point - reach, 0.0), point + reach],
            f"{key}_ratio": ratio,
            f"{key}_ratio_ci95": None if ratio is None else [ratio / factor, ratio * factor],
            **power_of_ratio(key, error, n),
            f"{key}_name": facts["frechet_name"],
            f"{key}_mode": facts["mode"],
            f"{key}_features": facts["name"],
            f"{key}_features_sha256": facts["sha256"],
            f"{key}_width": width,
            f"{key}_num_real": len(real),
            f"{key}_num_generated": n,
            f"{key}_resamples": resamples,
            f"{key}_warning": None if min(n, len(real)) > width else f"n ≤ d: {singular}",
        }
        context.progress(facts["frechet_name"], len(results), len(generated))
    return results


def paired_ratio(point: float, draws: Tensor, base: float, base_draws: Tensor) -> tuple[float | None, float]:
    """Return a ratio of distances and the standard error of its logarithm.

    None and 0 where a distance is not clearly above zero.
    """
    if min(point, base, float(draws.min()), float(base_draws.min())) <= 1e-9 * max(point, base, 1e-9):
        return None, 0.0
    return point / base, float((draws / base_draws).log().std())
