"""The Fréchet distance without the bias of few samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eval.features import load_features
from eval.fid import Reference, frechet_distance
from eval.fid_infinity import extrapolated, sizes
from eval.run import measure_all
from eval.types import Context, Subject


def drawn(n: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sizes_go_evenly_from_a_tenth_to_all() -> None:
    found = sizes(50_000, 2048)
    assert (found[0], found[-1], len(found)) == (5_000, 50_000, 15)
    assert sizes(30, 2)[0] == 3
    assert sizes(200, 64)[0] == 65  # more than features
    assert sizes(100, 64)[0] == 50  # or half of all


def test_the_distance_of_rows_is_that_of_the_rows_alone() -> None:
    real, generated = drawn(300, 0), drawn(50, 1, 0.4)
    counts = torch.zeros(50, dtype=torch.float64)
    counts[[3, 7, 8, 20, 21, 30, 31, 32, 33, 40]] = 1.0
    counts[5] = 3.0
    rows = torch.arange(50).repeat_interleave(counts.long())
    wanted = frechet_distance(real, generated[rows])
    assert Reference(real).distance(generated, counts) == pytest.approx(wanted, rel=1e-6)


def test_the_bias_of_few_samples_is_gone() -> None:
    # Equal covariances and a mean that is off by 0.5 in each of 8 dimensions: the distance is 2.
    reference = Reference(drawn(40_000, 0))
    found, at_n = [], []
    for seed in range(12):
        generated = drawn(400, 100 + seed, 0.5)
        found.append(extrapolated(reference, generated, torch.Generator().manual_seed(seed)))
        at_n.append(reference.distance(generated, torch.ones(400, dtype=torch.float64)))
    bias = sum(at_n) / 12 - 2
    left = sum(point for point, _ in found) / 12 - 2
    assert bias > 0.03
    assert abs(left) < bias / 2
    assert sum(slope for _, slope in found) > 0


def test_a_straight_line_over_one_over_n_is_found_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(drawn(20, 0))
    monkeypatch.setattr(Reference, "distance", lambda self, x, counts: 3.0 + 7.0 / float(counts.sum()))
    point, slope = extrapolated(reference, drawn(100, 1), torch.Generator())
    assert point == pytest.approx(3)
    assert slope == pytest.approx(7)


class Corners(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


class Wide(nn.Module):
    """More features than bootstrap resamples are made for."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1).repeat(1, 17)


def measured(network: nn.Module) -> dict:
    def pictures(n: int, seed: int, low: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(low, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=generator)

    images = {"dense": pictures(60, 1), "twin": pictures(60, 1), "far": pictures(60, 2, low=100)}
    context = Context(
        {name: Subject(sample=lambda ids, x=x: x[ids]) for name, x in images.items()},
        real=lambda: pictures(80, 3),
        features=lambda: load_features(network),
        num_samples=60,
    )
    return measure_all(context, ["fid_infinity", "fid"])


def test_measured_by_subject_with_paired_ratios() -> None:
    found = measured(Corners())
    for result in found.values():
        assert result["frechet_infinity_sizes"] == sizes(60, 4)
        assert result["frechet_infinity_name"] == "Fréchet distance on Corners features at N = ∞"
    low, high = found["far"]["frechet_infinity_ci95"]
    assert low < found["far"]["frechet_infinity"] < high
    assert found["far"]["frechet_infinity"] > found["dense"]["frechet_infinity"]
    assert found["twin"]["frechet_infinity"] == found["dense"]["frechet_infinity"]
    assert found["dense"]["frechet_infinity_warning"] is None


def test_wide_features_have_no_interval_and_few_images_a_warning() -> None:
    far = measured(Wide())["far"]
    assert "frechet_infinity_ci95" not in far
    assert far["frechet_infinity_warning"].startswith(
        "the smallest subset has 30 images, not more than the 272"
    )
