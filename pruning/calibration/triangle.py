"""Symmetric sums, kept as one triangle: half of the memory while they are added up, an eighth of the disk of the whole.

A symmetric matrix (n, n) of halves ``[[A, B], [B^T, C]]``, h = ceil(n / 2), is kept in one tensor (2h + 1, h): B on
top, below it the upper triangle of C, and under its diagonal the lower one of A ("rectangular full packed format",
Gustavson et al. 2010). For an odd n the last row and column of the halves are zeros.

While sums grow they are float64. What is kept is float32, and of second moments the part *about the mean*,
``sum w x x^T - s s^T / sum w``: who reads it takes the mean off, and what float32 rounds off is then small beside the
variance, however large the mean is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 2**22
"""Elements of a matrix that are made at once in passing."""


def packed_size(n: int) -> int:
    """Return how many numbers the triangle of an (n, n) matrix takes."""
    half = -(-n // 2)
    return (2 * half + 1) * half


@dataclass(frozen=True)
class Triangle:
    """A symmetric matrix (n, n).

    Attributes:
        packed: (2h + 1, h), see above.
        n: Its rows.
    """

    packed: Tensor
    n: int

    @classmethod
    def zeros(cls, n: int, device: torch.device | str = "cpu") -> Triangle:
        """Return zeros, in float64."""
        half = -(-n // 2)
        return cls(torch.zeros(2 * half + 1, half, dtype=torch.float64, device=device), n)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n, self.n

    def cpu(self) -> Triangle:
        """Return it on the CPU."""
        return Triangle(self.packed.cpu(), self.n)

    @property
    def _half(self) -> int:
        return self.packed.shape[1]

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return B (h, n - h), where C is (n - h, n - h, upper), and where A is (h, h, lower), as views."""
        half, rest = self._half, self.n - self._half
        below = self.packed[half:]
        return self.packed[:half, :rest], below[:rest, :rest], below[1:]

    def add_(self, matrix: Tensor) -> Triangle:
        """Add a symmetric matrix (n, n) of any float dtype."""
        half = self._half
        off, upper, lower = self._parts()
        off.add_(matrix[:half, half:])
        upper.add_(matrix[half:, half:].triu())
        lower.add_(matrix[:half, :half].tril())
        return self

    def add_outer_(self, vector: Tensor, scale: float) -> Triangle:
        """Add ``scale v v^T`` for v (n,)."""
        half = self._half
        first, last = vector[:half], vector[half:]
        off, upper, lower = self._parts()
        off.addr_(first, last, alpha=scale)
        rows = max(1, STRIP // max(half, 1))
        for start in range(0, half, rows):
            upper_rows, lower_rows = upper[start : start + rows], lower[start : start + rows]
            upper_rows.add_(torch.outer(last[start : start + rows], scale * last).triu(start))
            lower_rows.add_(torch.outer(first[start : start + rows], scale * first).tril(start))
        return self

    def whole(self) -> Tensor:
        """Return the matrix (n, n), float64, a new tensor."""
        half = self._half
        off, upper, lower = self._parts()
        found = torch.empty(self.n, self.n, dtype=torch.float64, device=self.packed.device)
        found[:half, half:] = off
        found[half:, :half] = off.T
        _mirror(found[half:, half:], upper, lower=False)
        _mirror(found[:half, :half], lower, lower=True)
        return found

    def blocks(self, units: int) -> Tensor:
        """Return the diagonal blocks (units, n / units, n / units), in the dtype that is kept."""
        size = self.n // units
        index = torch.arange(self.n, device=self.packed.device).view(units, size)
        rows, columns = index[:, :, None].expand(-1, -1, size), index[:, None, :].expand(-1, size, -1)
        return self._at(torch.minimum(rows, columns), torch.maximum(rows, columns))

    def _at(self, row: Tensor, column: Tensor) -> Tensor:
        """Return the entries at ``row <= column``."""
        half = self._half
        off = column >= half
        # B holds (row, column - h), C (row - h, column - h) from line h on, A (column, row) from line h + 1 on.
        return self.packed[torch.where(off, row, half + 1 + column), torch.where(off, column - half, row)]


def _mirror(into: Tensor, kept: Tensor, *, lower: bool) -> None:
    """Fill `into` with the symmetric matrix of which one triangle of `kept` is known."""
    n = len(into)
    rows = max(1, STRIP // max(n, 1))
    for start in range(0, n, rows):
        end = min(start + rows, n)
        if lower:
            into[start:end, :end] = kept[start:end, :end]
            into[:start, start:end] = kept[start:end, :start].T
        else:
            into[start:end, start:] = kept[start:end, start:]
            into[end:, start:end] = kept[start:end, end:].T
        square = into[start:end, start:end]
        one = square.tril() if lower else square.triu()
        square.copy_(one + (one.T - torch.diag(one.diagonal())))
