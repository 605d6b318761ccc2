"""CMMD: maximum mean discrepancy of CLIP's image embeddings (Jayasumana et al. 2024, arXiv 2401.09603).

    1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),   k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),   sigma = 10

of unit vectors, means over all pairs, each with itself included, as the authors compute it: so it is slightly above
zero even for equal distributions, by about 1000 (1 - k) (1/n + 1/m).

Observation: ``features`` ``(N, d)`` of the network ``cmmd``. Called CMMD for the published ViT-L/14@336 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eval.fid import check_pair
from eval.image_features import features_of, observe_with
from eval.intervals import around
from eval.media import IMAGE
from eval.mmd import Parts, parts, standard_error
from eval.observation import Observation, Seen
from eval.power import power_of_difference
from eval.types import Context

NEEDS, NEEDS_DATA = ("networks.cmmd",), ("real", "networks.cmmd")
READS, READS_DATA = ("samples", "cmmd"), ("cmmd",)
MEDIA = (IMAGE,)
MIN_IMAGES = 3
SIGMA, SCALE = 10.0, 1000.0
ROWS = 1024


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Extract the embeddings of a subject's images, or of the real ones for the data."""
    return observe_with(context.networks["cmmd"](), context, name, seen)


def gaussian(rows: Tensor, others: Tensor) -> Tensor:
    """Return ``1000 exp(-|x - y|^2 / (2 sigma^2))`` of all pairs of rows."""
    squares = rows.square().sum(1)[:, None] + others.square().sum(1) - 2 * rows @ others.T
    return SCALE * torch.exp(-squares / (2 * SIGMA**2))


def mean_kernel(rows: Tensor, others: Tensor) -> float:
    """Return the mean of `gaussian` over all pairs, in blocks of rows."""
    total = sum(
        float(gaussian(a.double(), b.double()).sum()) for a in rows.split(ROWS) for b in others.split(ROWS)
    )
    return total / (len(rows) * len(others))


def cmmd(real: Tensor, generated: Tensor, own: float | None = None) -> float:
    """Return the distance of two sets of embeddings, ``(M, d)`` and ``(N, d)``; `own` is the real set's mean kernel."""
    check_pair(real, generated)
    own = mean_kernel(real, real) if own is None else own
    return own + mean_kernel(generated, generated) - 2 * mean_kernel(generated, real)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the distance to the real images, and its paired difference to the reference.

    Intervals are ± 1.96 standard errors over the generated images (`eval.mmd`).
    """
    real, generated, facts = features_of(context, seen, "cmmd")
    own = mean_kernel(real, real)
    base: tuple[float, Parts] | None = None
    results: dict[str, dict[str, Any]] = {}
    for name, features in generated.items():
        value, owed = cmmd(real, features, own), parts(gaussian, real, features)
        base = base or (value, owed)  # the reference is the first
        paired = standard_error(owed, base[1])
        results[name] = {
            "cmmd": value,
            "cmmd_ci95": around(value, standard_error(owed)),
            "cmmd_difference": value - base[0],
            "cmmd_difference_ci95": around(value - base[0], paired),
            **power_of_difference("cmmd", paired, base[0], len(features)),
            "cmmd_name": facts["kernel_name"],
            "cmmd_mode": facts["mode"],
            "cmmd_features_sha256": facts["sha256"],
            "cmmd_num_real": len(real),
            "cmmd_num_generated": len(features),
        }
        context.progress("CMMD", len(results), len(generated))
    return results
