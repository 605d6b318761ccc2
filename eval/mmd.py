"""Standard errors of the squared maximum mean discrepancy of two sets, and of the difference of two such, paired.

The real set stays as it is. What the estimate owes to the generated rows has by Hoeffding's decomposition a linear
part, ``h_i = 2 (mean_j k(x_i, x_j) - mean_l k(x_i, y_l))``, and a quadratic one, the doubly centred kernel ``g_ij``:

    var = var(h) / n + 2 mean(g_ij^2) / (n (n - 1))

(Serfling 1980, Approximation Theorems of Mathematical Statistics, section 5.3). That h is itself a mean over m partners
adds ``4 mean(g_ij^2) / m`` to its variance, which is taken off. Close to the real set the linear part
vanishes and the quadratic one counts. Both parts of two subjects are known by sample id, so that their difference is
paired. Means run over at most `PARTNERS` rows, evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Maps float64 rows ``(a, d)`` and ``(b, d)`` to ``(a, b)``."""

PARTNERS, QUADRATIC = 4096, 1024
ROWS = 256  # with 4096 partners a block is 8 MB


@dataclass(frozen=True)
class Parts:
    """What an estimate owes to each generated row.

    Attributes:
        linear: h, ``(n,)``.
        quadratic: g of some of the rows, square.
        partners: Rows that h is a mean over.
    """

    linear: Tensor
    quadratic: Tensor
    partners: int


def spread(features: Tensor, most: int) -> Tensor:
    """Return at most so many rows, evenly spaced, in float64."""
    return features[places(len(features), most)].double()


def places(n: int, most: int) -> Tensor:
    """Return which of n rows are taken, evenly spaced, at most so many."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()


def parts(kernel: Kernel, real: Tensor, generated: Tensor) -> Parts:
    """Return what the squared discrepancy of two sets of features owes to each generated row."""
    chosen = places(len(generated), PARTNERS)
    others, targets = generated[chosen].double(), spread(real, PARTNERS)
    among = torch.full((len(generated),), -1).index_put((chosen,), torch.arange(len(chosen)))
    linear = torch.empty(len(generated), dtype=torch.float64)
    for start in range(0, len(generated), ROWS):
        rows = generated[start : start + ROWS].double()
        own = kernel(rows, others)
        place = among[start : start + ROWS]
        known = place >= 0  # a row is no partner of itself
        own[known.nonzero().flatten(), place[known]] = 0.0
        near = own.sum(1) / (len(chosen) - known.double())
        linear[start : start + ROWS] = 2 * (near - kernel(rows, targets).mean(1))
    few = spread(generated, QUADRATIC)
    matrix = kernel(few, few)
    matrix.fill_diagonal_(0.0)
    m = len(few)
    # Means without the diagonal, which no unbiased estimate looks at.
    by_row, whole = matrix.sum(1) / (m - 1), matrix.sum() / (m * (m - 1))
    return Parts(linear, matrix - by_row[:, None] - by_row + whole, len(chosen))


def standard_error(ours: Parts, base: Parts | None = None) -> float:
    """Return the standard error of a squared discrepancy, or with `base` that of its paired difference to another."""
    linear = ours.linear if base is None else ours.linear - base.linear
    quadratic = ours.quadratic if base is None else ours.quadratic - base.quadratic
    n, m = len(linear), len(quadratic)
    apart = quadratic.square()
    squares = float((apart.sum() - apart.diagonal().sum()) / (m * (m - 1)))
    of_linear = max(float(linear.var()) - 4 * squares / ours.partners, 0.0)
    return math.sqrt(of_linear / n + 2 * squares / (n * (n - 1)))
