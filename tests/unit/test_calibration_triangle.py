"""One triangle of a symmetric sum."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pruning.calibration import triangle
from pruning.calibration.kept import Kept
from pruning.calibration.triangle import Symmetric, Triangle, packed_size

SIZES = (1, 2, 3, 8, 9, 30)
STRIPS = (1, 2, 7, 30)


def symmetric(n: int, seed: int = 0) -> Tensor:
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return matrix + matrix.T


def in_parts(matrix: Tensor, strip: int = 4) -> Symmetric:
    return Symmetric(len(matrix), matrix.device, lambda rows, columns: matrix[rows, columns].clone(), strip)


def triangle_of(matrix: Tensor) -> Triangle:
    kept = Triangle.zeros(len(matrix))
    in_parts(matrix).add_to(kept)
    return kept


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("strip", STRIPS)
def test_a_triangle_is_the_whole(n: int, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangle, "STRIP", strip)
    one, other = symmetric(n), symmetric(n, 1)
    kept, both = Triangle.zeros(n), Triangle.zeros(n)
    in_parts(one, strip).add_to(kept, both)
    in_parts(other, strip).add_to(both)
    assert torch.equal(kept.whole(), one.double())
    assert torch.equal(both.whole(), one.double() + other.double())
    assert kept.packed.numel() == packed_size(n) <= (n + 1) * (n + 2) / 2


@pytest.mark.parametrize("n", [127, 128, 129, 257, 1001])
def test_a_product_is_made_once_in_strips_and_half_of_it(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, n, generator=generator, dtype=torch.float64)
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    product, made = Symmetric.product(x, weight), list[int]()

    def part(rows: slice, columns: slice) -> Tensor:
        found = product.part(rows, columns)
        made.append(found.numel())
        return found

    kept = [Triangle.zeros(n), Triangle.zeros(n)]
    dataclasses.replace(product, part=part).add_to(*kept)
    for one in kept:
        torch.testing.assert_close(one.whole(), (x * weight[:, None]).T @ x, rtol=1e-12, atol=1e-12)
    assert sum(made) <= n * (n + min(n, product.strip)) / 2
    assert max(made) <= product.strip * max(n / 2 + 1, min(n, product.strip))
    assert product.strip == 128  # a sixteenth where that is more
    assert Symmetric.product(torch.zeros(1, 12_288), torch.ones(1)).strip == 768


@pytest.mark.parametrize("n", SIZES)
def test_rows_of_a_triangle(n: int) -> None:
    matrix = symmetric(n).double()
    kept = triangle_of(matrix)
    for start in range(n):
        for stop in range(start + 1, n + 1):
            assert torch.equal(kept.strip(start, stop), matrix[start:stop])
    assert torch.equal(kept.diagonal(), matrix.diagonal())


@pytest.mark.parametrize("n", SIZES)
def test_diagonal_blocks(n: int) -> None:
    matrix = symmetric(n)
    kept = triangle_of(matrix)
    for units in (units for units in range(1, n + 1) if n % units == 0):
        u = n // units
        by_hand = torch.stack([matrix[k * u : (k + 1) * u, k * u : (k + 1) * u] for k in range(units)])
        assert torch.equal(kept.blocks(units), by_hand.double())


def test_a_moment_is_kept_about_the_mean() -> None:
    """The mean is 10^5 spreads: float32 of the moment itself would lose the whole variance."""
    x = 1e5 + torch.randn(400, 6, generator=torch.Generator().manual_seed(3)).double()
    found = {
        "input_moment": triangle_of(x.T @ x),
        "input_sum": x.sum(0)[None],
        "row_weight": torch.tensor([400.0]).double(),
        "output_sensitivity": triangle_of(symmetric(3)),
    }
    kept = Kept.of(found)
    assert {name.split(":")[1] for name in kept.raw if ":" in name} == {"centred", "triangle"}
    mean = x.mean(0)
    covariance = kept["input_moment"] / 400 - torch.outer(mean, mean)
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kept["output_sensitivity"], symmetric(3).double(), rtol=1e-7, atol=1e-7)
    assert kept["input_moment"].dtype == torch.float64
    for name in ("input_moment", "output_sensitivity", "input_sum"):
        assert torch.equal(kept.by_rows(name)[1:3], kept[name][1:3])
    assert torch.equal(kept.by_rows("input_moment").diagonal(), kept["input_moment"].diagonal())
    assert kept.by_rows("input_moment").shape == (6, 6)


def test_what_is_kept_is_found_by_the_name_of_the_sum() -> None:
    kept = Kept.of({"input_moment": triangle_of(torch.eye(2)), "samples": torch.ones(1)})
    assert set(kept) == {"input_moment", "samples"}
    assert "input_moment" in kept
    assert "input_sum" not in kept
    assert torch.equal(kept["input_moment"], torch.eye(2).double())
    with pytest.raises(KeyError):
        kept["input_sum"]
