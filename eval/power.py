"""Power: the smallest difference that an evaluation of this size could have told apart, and the size that 1 % takes.

A difference is told apart where its two-sided 95 % interval leaves out zero. If the estimate of a difference is normal
with standard error s, a true difference of

    delta = (z_0.975 + z_0.80) s = 2.80 s

is told apart in 80 % of evaluations (Bloom 1995, Evaluation Review 19(5): minimum detectable effects). s is that of the
*paired* difference of two models that are sampled from the same noise. It falls as 1 / sqrt(n), so that
``n' = n (delta / wanted)^2`` samples tell `wanted` apart. Ratios are judged on a log scale.
"""

from __future__ import annotations

import math
from typing import Any

from scipy.special import ndtri

LEVEL, POWER = 0.05, 0.8
MULTIPLIER = float(ndtri(1 - LEVEL / 2) + ndtri(POWER))
"""Standard errors that a true difference must measure: 2.80."""
WANTED = 0.01
"""The share of the reference's value for which the size is said."""


MOST = 100.0
"""A logarithm of a ratio beyond which nothing is said: that evaluation tells nothing apart."""


def power_of_ratio(key: str, log_error: float, samples: int) -> dict[str, Any]:
    """Return the power of a paired ratio.

    Args:
        key: Name of the metric; the results are called ``{key}_detectable``, the smallest difference as a share of the
            reference's value, ``{key}_samples``, and ``{key}_size_1pct``, the samples with which it is 1 %.
        log_error: Standard error of the logarithm of the ratio; 0 for a subject that is the reference, which has none.
        samples: Samples that the ratio is from.
    """
    if log_error == 0 or MULTIPLIER * log_error > MOST:
        return _said(key, samples)
    needed = samples * (MULTIPLIER * log_error / math.log1p(WANTED)) ** 2
    return _said(key, samples, math.expm1(MULTIPLIER * log_error), needed)


def power_of_difference(key: str, error: float, base: float, samples: int) -> dict[str, Any]:
    """Return the power of a paired difference, as shares of `base`; nothing is said where that is not above zero.

    Args:
        key: As of `power_of_ratio`.
        error: Standard error of the difference; 0 for a subject that is the reference.
        base: The reference's value, or the value itself for a distance to the reference.
        samples: Samples that the difference is from.
    """
    if error == 0 or base <= 0:
        return _said(key, samples)
    share = MULTIPLIER * error / base
    return _said(key, samples, share, samples * (share / WANTED) ** 2)


def _said(key: str, samples: int, share: float = math.inf, size: float = math.inf) -> dict[str, Any]:
    known = math.isfinite(share) and math.isfinite(size)
    return {
        f"{key}_samples": samples,
        f"{key}_detectable": share if known else None,
        f"{key}_size_1pct": math.ceil(size) if known else None,
    }
