"""Fréchet and kernel distance on features with known moments."""

import math

import pytest
import torch
from torch import Tensor, nn

from eval import fid
from eval.features import load_features
from eval.fid import bootstrap_frechet, frechet_distance
from eval.kid import kernel_distance
from eval.run import measure_all
from eval.types import Context, Subject


def cross(covariance: list[list[float]], mean: list[float]) -> Tensor:
    """Return four points whose sample mean and covariance (n - 1) are exactly these."""
    points = math.sqrt(1.5) * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    root = torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64))
    return points @ root.T + torch.tensor(mean, dtype=torch.float64)


def test_two_gaussians_with_diagonal_covariances() -> None:
    # 3^2 + 4^2 + (1 - 2)^2 + (1 - 3)^2
    real, generated = cross([[1, 0], [0, 1]], [0, 0]), cross([[4, 0], [0, 9]], [3, 4])
    assert frechet_distance(real, generated) == pytest.approx(30, rel=1e-12)


def test_two_gaussians_whose_covariances_do_not_commute() -> None:
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2x2; here M = [[2, 4], [1, 8]]
    real, generated = cross([[2, 1], [1, 2]], [0, 0]), cross([[1, 0], [0, 4]], [0, 0])
    assert frechet_distance(real, generated) == pytest.approx(
        9 - 2 * math.sqrt(10 + 2 * math.sqrt(12)), rel=1e-12
    )


def test_identical_sets_are_at_zero() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(50, 4, generator=generator), torch.rand(40, 4, generator=generator)
    whole = frechet_distance(real, generated)
    monkeypatch.setattr(fid, "CHUNK", 7)
    assert frechet_distance(real, generated) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("shape", [(300, 3), (200, 16), (10, 16)])
def test_the_bootstrap_measures_what_torchmetrics_does(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    real, generated = torch.randn(shape, generator=generator), 2 * torch.rand(shape, generator=generator)
    got = bootstrap_frechet(real, generated, resamples=1, generator=torch.Generator().manual_seed(5))
    rows = torch.randint(len(generated), (len(generated),), generator=torch.Generator().manual_seed(5))
    tolerance = 1e-6 if shape[0] > shape[1] else 1e-5  # round-off of the zero eigenvalues
    assert float(got) == pytest.approx(frechet_distance(real, generated[rows]), rel=tolerance)


def test_the_bootstrap_error_is_that_of_fresh_samples() -> None:
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(400, 4, generator=generator)
    draws = [1 + torch.randn(200, 4, generator=generator) for _ in range(120)]
    fresh = torch.tensor([frechet_distance(real, d) for d in draws]).std()
    errors = [bootstrap_frechet(real, d, resamples=40, generator=generator).std() for d in draws[:20]]
    assert float(torch.stack(errors).mean() / fresh) == pytest.approx(1, abs=0.25)


def test_kernel_distance_by_hand() -> None:
    # d = 1: k(x, y) = (x y + 1)^3. Real {0, 1}: k off the diagonal 1. Generated {0, 2}: 1. Cross: 1, 1, 1, 27.
    # unbiased: 2 * 1 / (2 * 1) + 2 * 1 / (2 * 1) - 2 * 30 / 4
    real, generated = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    mean, std, size = kernel_distance(real, generated, subset_size=2, subsets=3)
    assert (mean, std, size) == (pytest.approx(-13), pytest.approx(0), 2)


def test_kernel_subsets_are_seeded_and_leave_the_global_generator_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(60, 4, generator=generator), torch.rand(40, 4, generator=generator)
    before = torch.get_rng_state()
    first = kernel_distance(real, generated, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert kernel_distance(real, generated, seed=3) == first
    assert kernel_distance(real, generated, seed=4) != first
    assert first[2] == 20
    assert first[1] > 0


@pytest.mark.parametrize(("rows", "size"), [(3, None), (10, 11), (10, 1)])
def test_a_subset_that_does_not_fit(rows: int, size: int | None) -> None:
    with pytest.raises(
        ValueError, match=r"subset size \d+ does not fit 20 real and \d+ .*at least 4 images where"
    ):
        kernel_distance(torch.zeros(20, 2), torch.zeros(rows, 2), subset_size=size)


def test_too_few_features() -> None:
    with pytest.raises(
        ValueError, match=r"features must be \(n, d\) with n >= 2 .* generated \(1, 2\); give more"
    ):
        frechet_distance(torch.zeros(5, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_widths_that_differ(distance) -> None:
    with pytest.raises(ValueError, match=r"and one d, found real \(5, 2\) and generated \(5, 3\);"):
        distance(torch.zeros(5, 2), torch.zeros(5, 3))


class Corners(nn.Module):
    """Mean of each quarter of a grey image: four features."""

    name = "corner"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def pictures(n: int, seed: int, low: int = 0) -> Tensor:
    return torch.randint(
        low, 256, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def context(n: int = 40) -> tuple[Context, Corners]:
    corners = Corners()
    images = {"dense": pictures(n, 1), "twin": pictures(n, 1), "far": pictures(n, 2, low=100)}
    subjects = {name: Subject(sample=lambda ids, x=x: x[ids]) for name, x in images.items()}
    return Context(
        subjects,
        real=lambda: pictures(50, 3),
        features=lambda: load_features(corners),
        num_samples=n,
        batch_size=25,
    ), corners


def test_measured_by_subject_with_shared_features() -> None:
    ctx, corners = context()
    frechet = kernel = measure_all(ctx, ["fid", "kid"])
    assert corners.calls == 2 * 4  # real and three subjects, two batches each, once for both metrics
    assert frechet["dense"]["frechet"] == frechet["twin"]["frechet"] < frechet["far"]["frechet"]
    assert kernel["dense"]["kernel"] == kernel["twin"]["kernel"] < kernel["far"]["kernel"]
    for result in frechet.values():
        low, high = result["frechet_ci95"]
        assert 0 <= low < result["frechet"] < high
        assert result["frechet_name"] == "Fréchet distance on corner features"
        assert result["frechet_warning"] is None
    assert kernel["dense"]["kernel_name"] == "Kernel distance on corner features"
    # The same images in the same resamples: the ratio is exactly one, and so are its limits.
    assert frechet["twin"]["frechet_ratio"] == 1
    assert frechet["twin"]["frechet_ratio_ci95"] == [1, 1]
    low, high = frechet["far"]["frechet_ratio_ci95"]
    assert 1 < low < frechet["far"]["frechet_ratio"] < high


def test_fewer_images_than_features_is_said() -> None:
    ctx, _ = context(n=4)
    warning = measure_all(ctx, ["fid"])["dense"]["frechet_warning"]
    assert warning == "n ≤ d: covariance is singular (50 real and 4 generated images, 4 features)"


def test_no_ratio_to_a_distance_of_zero() -> None:
    same = pictures(30, 1)
    subjects = {"dense": Subject(sample=lambda ids: torch.zeros_like(same)[ids])}
    ctx = Context(
        subjects,
        real=lambda: torch.zeros_like(same),
        features=lambda: load_features(Corners()),
        num_samples=30,
    )
    assert measure_all(ctx, ["fid"])["dense"]["frechet_ratio"] is None
