"""Precision and recall, density and coverage: how many samples look real, and how much of the real data is covered.

Around every image of a set lies a ball that reaches to its k-th nearest neighbour in the set. Improved precision and
recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, k = 3): the share of generated images in a ball of a real one, and
of real images in a ball of a generated one. Density and coverage (Naeem et al. 2020, arXiv 2002.09797, k = 5), which a
single outlier does not inflate: the real balls that a generated image is in, over k; and the share of real balls with a
generated image in them.

All four depend on the number of images of either set: compare only equal numbers. Distances are made in blocks of
rows, so that memory stays small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.fid import check_pair
from eval.image_features import features_of
from eval.intervals import mean_interval, ratio_error, ratio_interval
from eval.media import IMAGE
from eval.observation import Seen
from eval.power import power_of_ratio
from eval.types import Context

READS = ("samples", "image_features")
READS_DATA = ("image_features",)
MEDIA = (IMAGE,)
NEIGHBOURS, DENSE_NEIGHBOURS = 3, 5
MIN_IMAGES = DENSE_NEIGHBOURS + 1  # each image and its neighbours
CELLS = 1 << 22
"""Distances that are held at once; 32 MB."""


def distances(rows: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the squared Euclidean distances of `rows` ``(n, d)`` to `others` ``(m, d)`` in blocks of rows, float64.

    Neither set is held in float64 as a whole.
    """
    step = max(1, min(CELLS // max(len(others), 1), CELLS // rows.shape[1]))
    width = max(1, CELLS // rows.shape[1])
    # A set's mean taken off, so that rounding does not grow with how far it is from the origin.
    mean = torch.stack([part.double().sum(0) for part in others.split(width)]).sum(0) / len(others)
    for start in range(0, len(rows), step):
        place = slice(start, min(start + step, len(rows)))
        block = rows[place].double() - mean
        found = torch.empty(len(block), len(others), dtype=torch.float64)
        for part, squares in zip(others.split(width), found.split(width, 1), strict=True):
            other = part.double() - mean
            torch.add(block.square().sum(1)[:, None], other.square().sum(1), out=squares)
            squares.addmm_(block, other.T, alpha=-2)
        yield place, found.clamp_(min=0)


def reaches(features: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """Return for each k of `neighbours` the squared distance of every row to its k-th nearest other row, ``(n,)``."""
    found = [torch.empty(len(features), dtype=torch.float64) for _ in neighbours]
    for place, squares in distances(features, features):
        rows = torch.arange(place.start, place.stop)
        squares[rows - place.start, rows] = 0.0  # itself, whatever rounding says
        nearest = squares.topk(max(neighbours) + 1, largest=False, sorted=True).values
        for reach, k in zip(found, neighbours, strict=True):
            reach[place] = nearest[:, k]
    return found


def precision_recall(
    real: Tensor, generated: Tensor, real_reaches: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the four measures of two sets of features image by image; the means are the measures.

    Args:
        real: ``(M, d)``.
        generated: ``(N, d)``.
        real_reaches: What `reaches` says of the real set for `NEIGHBOURS` and `DENSE_NEIGHBOURS`, if it is known.

    Returns:
        ``precision`` and ``density`` ``(N,)``, ``recall`` and ``coverage`` ``(M,)``, float64.

    Raises:
        ValueError: If the widths differ or a set has fewer than `MIN_IMAGES` rows.
    """
    check_pair(real, generated)
    if min(len(real), len(generated)) < MIN_IMAGES:
        raise ValueError(
            f"precision and recall: {len(real)} real and {len(generated)} generated images; both must be at least "
            f"{MIN_IMAGES}, for each is compared with its {DENSE_NEIGHBOURS} nearest"
        )
    near, wide = real_reaches or reaches(real, (NEIGHBOURS, DENSE_NEIGHBOURS))
    (own,) = reaches(generated, (NEIGHBOURS,))
    precise = torch.empty(len(generated), dtype=torch.float64)
    density = torch.empty(len(generated), dtype=torch.float64)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for place, squares in distances(generated, real):  # (block, M)
        precise[place] = (squares <= near).any(1).double()
        inside = squares <= wide
        density[place] = inside.sum(1).double() / DENSE_NEIGHBOURS
        covered |= inside.any(0)
        recalled |= (squares <= own[place, None]).any(0)
    return {
        "precision": precise,
        "recall": recalled.double(),
        "density": density,
        "coverage": covered.double(),
    }


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the four measures with their intervals, and their paired ratios to the reference.

    Intervals of precision and density are over the generated images, the real ones as they are; those of recall and
    coverage over the real images, the generated ones as they are. ``x_ratio`` pairs the same noise, or the same image.
    """
    real, generated, facts = features_of(context, seen)
    near, wide = reaches(real, (NEIGHBOURS, DENSE_NEIGHBOURS))
    base: dict[str, Tensor] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, features in generated.items():
        found = precision_recall(real, features, (near, wide))
        base = base or found  # the reference is the first
        results[name] = {"precision_features": facts["name"], "precision_num_generated": len(features)}
        for key, values in found.items():
            results[name] |= {key: float(values.mean()), f"{key}_ci95": mean_interval(values)}
            if min(float(values.mean()), float(base[key].mean())) <= 0:
                results[name] |= {f"{key}_ratio": None, f"{key}_ratio_ci95": None}
                continue
            ratio, error = ratio_error(values, base[key])
            bounds = ratio_interval(values, base[key])
            results[name] |= {f"{key}_ratio": ratio, f"{key}_ratio_ci95": bounds}
            results[name] |= power_of_ratio(key, error / ratio, len(values))
        context.progress("precision and recall", len(results), len(generated))
    return results
