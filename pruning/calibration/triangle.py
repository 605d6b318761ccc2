"""Symmetric sums, kept as one triangle: half of the memory while they are added up, an eighth of the disk of the whole.

A symmetric matrix (n, n) of halves ``[[A, B], [B^T, C]]``, h = ceil(n / 2), is kept in one tensor (2h + 1, h): B on
top, below it the upper triangle of C, and under its diagonal the lower one of A ("rectangular full packed format",
Gustavson et al. 2010). For an odd n the last row and column of the halves are zeros.

While sums grow they are float64. What is kept is float32, and of second moments the part *about the mean*,
``sum w x x^T - s s^T / sum w``: who reads it takes the mean off, and what float32 rounds off is then small beside the
variance, however large the mean is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.products import product

STRIP = 2**22
"""Elements of a matrix that are made at once in passing."""

MIN_ROWS, STRIPS = 128, 16
"""Strips in which a product is made, and their fewest rows."""


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

    def _view(self, rows: slice, columns: slice) -> Tensor:
        """Return where a part lies that is within B, or within C or A, on the diagonal or on the side that is kept."""
        half = self._half
        off, upper, lower = self._parts()
        if columns.stop <= half:
            return lower[rows, columns]
        here = slice(columns.start - half, columns.stop - half)
        return off[rows, here] if rows.start < half else upper[rows.start - half : rows.stop - half, here]

    def whole(self) -> Tensor:
        """Return the matrix (n, n), float64, a new tensor."""
        found = torch.empty(self.n, self.n, dtype=torch.float64, device=self.packed.device)
        rows = max(1, STRIP // max(self.n, 1))
        for start in range(0, self.n, rows):
            found[start : start + rows] = self.strip(start, min(start + rows, self.n))
        return found

    def strip(self, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of the matrix, (stop - start, n), in the dtype that is kept; a new tensor."""
        half = self._half
        if start < half < stop:
            return torch.cat([self.strip(start, half), self.strip(half, stop)])
        off, upper, lower = self._parts()
        found = self.packed.new_empty(stop - start, self.n)
        if start < half:
            found[:, half:] = off[start:stop]
            found[:, :start] = lower[start:stop, :start]
            found[:, stop:half] = lower[stop:half, start:stop].T
            square = lower[start:stop, start:stop].tril()
        else:
            first, last = start - half, stop - half
            found[:, :half] = off[:, first:last].T
            found[:, half:start] = upper[:first, first:last].T
            found[:, stop:] = upper[first:last, last:]
            square = upper[first:last, first:last].triu()
        found[:, start:stop] = square + square.T - square.diagonal().diag()
        return found

    def diagonal(self) -> Tensor:
        """Return what is on the diagonal, (n,), in the dtype that is kept."""
        return self.blocks(self.n).flatten()

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


@dataclass(frozen=True)
class Symmetric:
    """A symmetric matrix (n, n) that is made part by part, when it is added: a large one is nowhere as a whole.

    Attributes:
        n: Its rows.
        device: Where it is made.
        part: (rows, columns) -> that part of it, in any float dtype; a new tensor.
        strip: How many rows are made at a time: many hold and multiply more than is wanted, few are slow; n or more for
            all at once.
    """

    n: int
    device: torch.device
    part: Callable[[slice, slice], Tensor]
    strip: int

    @classmethod
    def product(cls, x: Tensor, weight: Tensor) -> Symmetric:
        """Return the sum of ``w x x^T`` over rows x (R, n) with weights w (R,)."""
        n, lines = x.shape[1], x.T.contiguous()

        def part(rows: slice, columns: slice) -> Tensor:
            return product(lines[rows] * weight, lines[columns])

        return cls(n, x.device, part, max(MIN_ROWS, -(-n // STRIPS)))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.n, self.n

    def add_to(self, *sums: Triangle) -> None:
        """Add it to triangles of its size; of a large one little more than half is made, once for all of them."""
        half, everything = -(-self.n // 2), slice(0, self.n)
        whole = self.part(everything, everything) if self.strip >= self.n else None
        for rows, columns in self._parts(half):
            part = self.part(rows, columns) if whole is None else whole[rows, columns]
            if rows == columns:  # of A the lower triangle is kept, of C the upper one
                part = part.tril_() if rows.start < half else part.triu_()
            for one in sums:
                one._view(rows, columns).add_(part)

    def _parts(self, half: int) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns of squares on the diagonal, and of what is kept beside each."""
        for start, end in ((0, half), (half, self.n)):
            for first in range(start, end, self.strip):
                rows = slice(first, min(first + self.strip, end))
                yield rows, rows
                if 0 < first < half:
                    yield rows, slice(0, first)
                right = max(rows.stop, half)
                if right < self.n:
                    yield rows, slice(right, self.n)
