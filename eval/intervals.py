"""Intervals: a claim is a measurement with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.special import bdtr, stdtrit
from torch import Tensor

LEVEL = 0.95
NORMAL_95 = 1.959963984540054


def around(value: float, error: float) -> list[float]:
    """Return the normal interval of a value with that standard error."""
    return [value - NORMAL_95 * error, value + NORMAL_95 * error]


def mean_interval(values: Tensor) -> list[float] | None:
    """Return the t interval of a mean over independent values ``(n,)``; None for fewer than two."""
    return ratio_interval(values, torch.ones_like(values))


def ratio_interval(numerator: Tensor, denominator: Tensor) -> list[float] | None:
    """Return the 95 % interval of ``D = sum a_i / sum b_i`` over independent clusters; None for fewer than two.

    With the residuals ``r_i = a_i - D b_i``, the linearised variance is ``n / (n - 1) * sum r_i^2 / (sum b_i)^2``
    (Cochran, Sampling Techniques, 1977, eq. 6.13 without the finite population factor), with n - 1 degrees of freedom.

    Args:
        numerator: a, one sum per cluster, ``(n,)``.
        denominator: b, ``(n,)``, not all zero.
    """
    n = len(numerator)
    if n < 2:
        return None
    estimate, error = ratio_error(numerator, denominator)
    reach = float(stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    return [estimate - reach, estimate + reach]


def ratio_error(numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
    """Return ``D = sum a_i / sum b_i`` over at least two clusters and its standard error; see `ratio_interval`."""
    a, b = numerator.double(), denominator.double()
    n = len(a)
    estimate = a.sum() / b.sum()
    residuals = a - estimate * b
    error = math.sqrt(n / (n - 1) * float(residuals.square().sum())) / abs(float(b.sum()))
    return float(estimate), error


def median_interval(values: Sequence[float]) -> tuple[list[float], float]:
    """Return a distribution-free interval of the median of at least one value, and the coverage it really has.

    The interval runs from the k-th smallest to the k-th largest of n values, k the largest with a coverage
    ``1 - 2 P(Binomial(n, 1/2) < k)`` of at least 95 % (David and Nagaraja, Order Statistics, 2003, section 7.1).
    Fewer than six values cannot reach that: then it is their range, and the coverage says so.
    """
    ordered, n = sorted(values), len(values)
    coverage = {k: 1 - 2 * float(bdtr(k - 1, n, 0.5)) for k in range(1, max(n // 2, 1) + 1)}
    k = max((k for k, share in coverage.items() if share >= LEVEL), default=1)
    return [ordered[k - 1], ordered[n - k]], coverage[k]
