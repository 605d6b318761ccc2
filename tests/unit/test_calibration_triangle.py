"""One triangle of a symmetric sum."""

from __future__ import annotations

import pytest
import torch

from pruning.calibration import triangle
from pruning.calibration.kept import Kept
from pruning.calibration.triangle import Triangle, packed_size

SIZES = (1, 2, 3, 8, 9, 30)


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return matrix + matrix.T


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("strip", [1, triangle.STRIP])
def test_a_triangle_is_the_whole(n: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangle, "STRIP", strip)
    one, other, vector = symmetric(n), symmetric(n, 1), torch.arange(1.0, n + 1).double()
    kept = Triangle.zeros(n).add_(one).add_(other)
    assert torch.equal(kept.whole(), one.double() + other.double())
    kept.add_outer_(vector, -0.25)
    torch.testing.assert_close(
        kept.whole(), one.double() + other.double() - 0.25 * torch.outer(vector, vector)
    )
    assert kept.packed.numel() == packed_size(n) <= (n + 1) * (n + 2) / 2


@pytest.mark.parametrize("n", SIZES)
def test_diagonal_blocks(n: int) -> None:
    matrix = symmetric(n)
    kept = Triangle.zeros(n).add_(matrix)
    for units in (units for units in range(1, n + 1) if n % units == 0):
        u = n // units
        by_hand = torch.stack([matrix[k * u : (k + 1) * u, k * u : (k + 1) * u] for k in range(units)])
        assert torch.equal(kept.blocks(units), by_hand.double())


def test_a_moment_is_kept_about_the_mean() -> None:
    """The mean is 10^5 spreads: float32 of the moment itself would lose the whole variance."""
    x = 1e5 + torch.randn(400, 6, generator=torch.Generator().manual_seed(3)).double()
    found = {
        "input_moment": Triangle.zeros(6).add_(x.T @ x),
        "input_sum": x.sum(0)[None],
        "row_weight": torch.tensor([400.0]).double(),
        "output_sensitivity": Triangle.zeros(3).add_(symmetric(3)),
    }
    kept = Kept.of(found)
    assert {name.split(":")[1] for name in kept.raw if ":" in name} == {"centred", "triangle"}
    mean = x.mean(0)
    covariance = kept["input_moment"] / 400 - torch.outer(mean, mean)
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept["output_sensitivity"], symmetric(3).double(), rtol=1e-7, atol=1e-7)
    assert kept["input_moment"].dtype == torch.float64


def test_what_is_kept_is_found_by_the_name_of_the_sum() -> None:
    kept = Kept.of({"input_moment": Triangle.zeros(2).add_(torch.eye(2)), "samples": torch.ones(1)})
    assert set(kept) == {"input_moment", "samples"}
    assert "input_moment" in kept
    assert "input_sum" not in kept
    assert torch.equal(kept["input_moment"], torch.eye(2).double())
    with pytest.raises(KeyError):
        kept["input_sum"]
