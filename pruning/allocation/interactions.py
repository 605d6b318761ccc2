"""What a set of blocks is thought to change, from its single blocks and the sets that were measured.

To first order the output moves by the sum of what its blocks move it by, ``d_i``, so that the change of a set S is
``sum_i |d_i|^2 + 2 sum_(i<j) <d_i, d_j>``: the sum of its single changes ``a_i``, and for each pair something of the
size of ``sqrt(a_i a_j)`` whose sign is not known. That is what is believed beforehand, as a Gaussian process with the
mean ``sum_i a_i`` and independent effects of single blocks, of variance ``(SINGLE a_i)^2``, and of pairs, of variance
``PAIR^2 a_i a_j``. Every measured set corrects it (Rasmussen and Williams, Gaussian Processes for Machine Learning,
equation 2.25).
"""

from __future__ import annotations

import torch
from torch import Tensor

SINGLE = 0.3
"""How far a block's change is thought to be from what it is alone, relative."""
PAIR = 0.7
"""Size of ``2 cos(d_i, d_j)``."""
NOISE = 0.05
"""What single blocks and pairs leave unexplained of a measured change, relative."""
FLOOR, TINY = 1e-3, 1e-12
"""A block is taken to change at least this share of the mean block, and this much."""

JITTER = 1e-9  # for the Cholesky factor


class Interactions:
    """The expectation of what sets change.

    Args:
        alone: Change without each single block, a_i, float64 (n,).
    """

    def __init__(self, alone: Tensor) -> None:
        self._alone = alone
        self._size = alone.clamp(min=max(FLOOR * float(alone.mean()), TINY))

    def learn(self, sets: Tensor, changes: Tensor) -> None:
        """Take the measured sets, (M, n) of zeros and ones, and their changes, (M,), in place of earlier ones."""
        noise = (NOISE * changes).square() + (FLOOR * self._size.min()).square()
        covariance = self._covariance(sets, sets) + torch.diag(noise)
        self._scale = covariance.diagonal().sqrt()
        scaled = covariance / self._scale[:, None] / self._scale
        scaled.diagonal().add_(JITTER)
        self._factor = torch.linalg.cholesky(scaled)
        self._error = self._solved((changes - sets @ self._alone)[:, None])
        self._sets = sets

    def of(self, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expected changes of sets (K, n) and their standard deviations, (K,) each."""
        shared = self._solved(self._covariance(self._sets, sets))  # (M, K)
        before = _kernel(sets @ self._size, sets @ self._size.square())
        variance = before - shared.square().sum(0)
        return sets @ self._alone + shared.T @ self._error[:, 0], variance.clamp(min=0).sqrt()

    def _solved(self, values: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self._factor, values / self._scale[:, None], upper=False)

    def _covariance(self, one: Tensor, other: Tensor) -> Tensor:
        size = self._size
        return _kernel((one * size) @ other.T, (one * size.square()) @ other.T)


def _kernel(shared: Tensor, squares: Tensor) -> Tensor:
    """Return the covariance of two sets by the sums of ``a_i`` and of ``a_i^2`` over the blocks that both have."""
    return SINGLE**2 * squares + PAIR**2 / 2 * (shared.square() - squares)
