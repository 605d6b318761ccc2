"""Cholesky factors and inverses of large symmetric matrices, in place, nearly all of the work in large products.

A matrix is worked on by panels of `STRIP` rows, of which the ones below are brought up to date by products
(`products.py`). Only upper triangles are read; what lies below the diagonal of a factor is left over from the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.products import product

logger = logging.getLogger(__name__)

STRIP = 512  # rows of a panel
TILE = 1024  # columns from which a product is taken off at once
WIDE = 2048  # columns up to which float64 costs little
WITHIN = 4  # times what float32 rounds off must fit into the ridge


def precision(width: int, ridge: float) -> torch.dtype:
    """Return the type in which a matrix of `width` columns is factorised with this share of its mean variance added.

    Factorising rounds as much as a change of the matrix of about ``width eps mean(diag)`` would; where it is wide, and
    the ridge is well above that, float32 does.
    """
    rounded = width * torch.finfo(torch.float32).eps
    return torch.float32 if width > WIDE and ridge >= WITHIN * rounded else torch.float64


def ridge_cholesky(
    read: Callable[[], Tensor], ridge: float, floor: float, where: str
) -> tuple[Tensor, float, float]:
    """Factorise ``matrix + gamma I`` with ``gamma = ridge * max(mean(diag), floor)``, raising `ridge` if it fails.

    Args:
        read: Returns the matrix, symmetric, ``(n, n)`` by rows, float32 or float64, positive semi-definite but for
            rounding. What it returns is overwritten by the factor; it is called again when `ridge` is raised.
        ridge: Share of the mean diagonal, at least 0.
        floor: Positive scale for a matrix that is zero but for rounding.
        where: What the matrix belongs to, for messages.

    Returns:
        U with ``U^T U = matrix + gamma I``, upper triangular (see above), the ridge used and gamma.

    Raises:
        PruningError: If the matrix holds NaN or infinity, or no ridge up to 1e8 times the asked one (at least 1)
            helps.
    """
    limit = max(1.0, ridge * 1e8)
    while ridge <= limit:
        matrix = read()
        scale = max(float(matrix.diagonal().mean()), floor)
        matrix.diagonal().add_(ridge * scale)
        rounded = len(matrix) * torch.finfo(matrix.dtype).eps * scale
        # A pivot of rounding size solves to nonsense without an error.
        if factorise(matrix) and float(matrix.diagonal().min()) ** 2 > rounded:
            return matrix, ridge, ridge * scale
        if not bool(read().isfinite().all()):
            raise PruningError(
                f"{where}: the covariance holds NaN or infinity; the calibration data or model is broken"
            )
        raised = max(ridge * 10, 1e-8)
        logger.warning("%s: the covariance is singular with ridge %g; raised to %g", where, ridge, raised)
        ridge = raised
    raise PruningError(f"{where}: the covariance cannot be factorised with any ridge up to {limit:g}")


def factorise(matrix: Tensor) -> bool:
    """Put U with ``U^T U = matrix`` in the place of the upper triangle of a matrix (P, P); False if there is none."""
    for start in range(0, len(matrix), STRIP):
        here, after = slice(start, start + STRIP), slice(start + STRIP, None)
        corner, info = torch.linalg.cholesky_ex(matrix[here, here], upper=True)
        if int(info):
            return False
        matrix[here, here] = corner
        matrix[here, after] = solve(corner.mT, matrix[here, after])
        subtract_gram(matrix[after, after], matrix[here, after])
    return True


def invert(upper: Tensor) -> Tensor:
    """Return the inverse of ``U^T U`` in the place of the upper triangular U, ``(P, P)``.

    Panel by panel from the last: with ``U_1 = [U_11 U_12]`` and the inverse A_22 of what is below known, and
    ``X = U_11^-1 U_12``, it is ``A_12 = -X A_22`` and ``A_11 = (U_11^T U_11)^-1 + X A_22 X^T``. That has the fewest
    operations, nearly all of them in large products.
    """
    for start in reversed(range(0, len(upper), STRIP)):
        here, after = slice(start, start + STRIP), slice(start + STRIP, None)
        x = solve(upper[here, here], upper[here, after], upper=True)
        upper[here, here] = torch.cholesky_inverse(upper[here, here], upper=True)
        beside, below = upper[here, after], upper[after, after]
        for first in range(0, len(below), STRIP):
            some = slice(first, first + STRIP)
            beside[:, some] = product(x, below[some].contiguous()).neg_()  # A_22 is symmetric
        upper[here, here] -= product(beside, x.contiguous())
        upper[after, here] = beside.T
    return upper


def solve(factor: Tensor, rows: Tensor, *, upper: bool = False) -> Tensor:
    """Return ``T^-1 X`` for a triangular T, lower unless `upper`; from the right, which is faster for X by rows."""
    return torch.linalg.solve_triangular(factor.mT, rows.mT, upper=not upper, left=False).mT


def subtract_gram(matrix: Tensor, left: Tensor) -> None:
    """Take ``l^T l`` off the upper triangle of a matrix (P, P), l (k, P); near its diagonal off the lower one, too."""
    columns = left.T.contiguous()
    for first in range(0, len(matrix), STRIP):
        rows = slice(first, first + STRIP)
        for start in range(first, len(matrix), TILE):
            across = slice(start, start + TILE)
            matrix[rows, across] -= product(columns[rows], columns[across])
