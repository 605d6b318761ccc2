"""Factors and inverses by panels against those of torch, in float64 and in the type that a width and a ridge allow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning import cholesky
from pruning.cholesky import factorise, invert, precision, ridge_cholesky
from pruning.errors import PruningError
from tests.unit.test_importance_greedy import covariance


@pytest.fixture(params=[1, 7, 16, 50])
def strip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cholesky, "STRIP", request.param)
    monkeypatch.setattr(cholesky, "TILE", 5)
    return request.param


@pytest.mark.usefixtures("strip")
@pytest.mark.parametrize("kind", ["plain", "massive", "deficient"])
def test_the_factor_and_the_inverse_are_those_of_torch(kind: str):
    matrix = covariance(kind, 48)
    work = matrix.clone()
    assert factorise(work)
    torch.testing.assert_close(work.triu(), torch.linalg.cholesky(matrix, upper=True))
    found = invert(work)
    assert found.data_ptr() == work.data_ptr()
    torch.testing.assert_close(found, found.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found @ matrix, torch.eye(48).double(), rtol=0, atol=1e-8)


@pytest.mark.usefixtures("strip")
@pytest.mark.parametrize("bad", [-1.0, 0.0, torch.nan])
def test_what_has_no_factor_is_told(bad: float):
    matrix = torch.eye(48).double()
    matrix[20, 20] = bad
    assert not factorise(matrix)


def test_single_precision_is_for_wide_matrices_with_a_ridge_well_above_its_rounding():
    assert precision(2048, 0.01) is torch.float64
    assert precision(2049, 0.01) is precision(15360, 0.01) is torch.float32
    assert precision(11520, 0.001) is precision(30000, 0.01) is precision(4096, 0) is torch.float64


@pytest.mark.parametrize("kind", ["plain", "massive", "deficient", "copies"])
def test_single_precision_moves_a_factor_by_little_beside_the_ridge(kind: str):
    matrix = covariance(kind, 600)  # the ridge of 0.01 is in it
    work = matrix.float()
    assert factorise(work)
    upper = work.triu().double()
    moved = torch.linalg.matrix_norm(upper.T @ upper - matrix, 2)
    assert moved < 0.1 * 0.01 * matrix.diagonal().mean()


def test_a_matrix_that_no_ridge_helps_is_refused_and_a_singular_one_gets_more():
    def read(matrix: Tensor) -> tuple[Tensor, float, float]:
        return ridge_cholesky(matrix.clone, 0.0, 1e-30, "group 'a'")

    upper, ridge, gamma = read(torch.ones(3, 3).double())
    assert ridge == gamma == pytest.approx(1e-8)
    torch.testing.assert_close(
        upper.triu().T @ upper.triu(), torch.ones(3, 3).double() + gamma * torch.eye(3)
    )
    with pytest.raises(PruningError, match="group 'a': the covariance holds NaN or infinity"):
        read(torch.full((3, 3), torch.nan).double())
    with pytest.raises(
        PruningError, match="group 'a': the covariance cannot be factorised with any ridge up to 1"
    ):
        read(torch.tensor([[0.0, 9.0], [9.0, 0.0]]).double())
