"""What the cells say: paired intervals, corrections for many comparisons, verdicts, rank correlations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, t

MARGIN = math.log(1.03)
"""Log-ratios closer to 0 than this are equivalent; a win is a gain of at least this much."""
LEVEL = 0.95
MIN_SETS = 3  # with fewer calibration sets an interval says nothing


@dataclass(frozen=True)
class Contrast:
    """A paired comparison of two arms on a log scale; below 0 the first is better.

    Attributes:
        model: Where.
        first: Name of the arm that is tried.
        second: Name of the arm it is held against.
        log_ratio: Mean of ``ln(first / second)`` over calibration sets.
        low: Lower end of its 95 % t interval.
        high: Upper end.
        p: Two-sided p value of a difference.
        sets: Number of calibration sets.
    """

    model: str
    first: str
    second: str
    log_ratio: float
    low: float
    high: float
    p: float
    sets: int

    @property
    def percent(self) -> tuple[float, float, float]:
        """The ratio and its interval as changes in per cent."""
        low, mid, high = (100 * math.expm1(x) for x in (self.low, self.log_ratio, self.high))
        return mid, low, high


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive values."""
    return float(np.exp(np.mean(np.log(list(values)))))


def paired(
    model: str, first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]
) -> Contrast | None:
    """Compare two arms over the calibration sets that both have; None for fewer than `MIN_SETS`.

    Args:
        model: Where.
        first: Name of the first arm.
        second: Name of the second arm.
        a: Positive errors of the first by calibration set.
        b: Those of the second.
    """
    shared = sorted(set(a) & set(b))
    if len(shared) < MIN_SETS:
        return None
    logs = np.log([a[k] / b[k] for k in shared])
    n, mean = len(logs), float(np.mean(logs))
    error = float(np.std(logs, ddof=1)) / math.sqrt(n)
    if error == 0:
        return Contrast(model, first, second, mean, mean, mean, 1.0 if mean == 0 else 0.0, n)
    reach = float(t.ppf(0.5 + LEVEL / 2, n - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, n - 1))
    return Contrast(model, first, second, mean, mean - reach, mean + reach, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values (1979), in the order given."""
    order = np.argsort(p_values)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdicts(contrasts: Sequence[Contrast]) -> list[str]:
    """Judge primary contrasts, one per model, with Holm's correction over the models.

    Returns:
        For each ``win`` (better by at least 3 %, adjusted p below 0.05), ``loss`` (worse by as much), ``equivalent``
        (the interval lies within 3 %) or ``inconclusive``.
    """
    found = []
    for contrast, p in zip(contrasts, holm([c.p for c in contrasts]), strict=True):
        if contrast.low > -MARGIN and contrast.high < MARGIN:
            found.append("equivalent")
        elif p < 1 - LEVEL and abs(contrast.log_ratio) >= MARGIN:
            found.append("win" if contrast.log_ratio < 0 else "loss")
        else:
            found.append("inconclusive")
    return found


def crossed_bootstrap(
    a: np.ndarray, b: np.ndarray, power: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % interval of the mean log-ratio of two arms, drawing calibration sets *and* images anew.

    Args:
        a: Squared changes of the first arm, ``(sets, images)``.
        b: Those of the second.
        power: Squared predictions of the dense model, ``(images,)``.
        resamples: Draws.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    sets, images = a.shape
    logs = np.empty(resamples)
    for k in range(resamples):
        rows = rng.integers(sets, size=sets)
        weights = rng.multinomial(images, np.full(images, 1 / images)).astype(float)
        logs[k] = np.mean(np.log((a[rows] @ weights) / (b[rows] @ weights)))
    low, high = np.quantile(logs, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def partial_spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray, layer: np.ndarray) -> float:
    """Return the rank correlation of x and y given a third score and the layer.

    Ranks of all three are taken within each layer and centred there; then x and y are freed of the third by least
    squares.

    Args:
        x: A score of each head, ``(n,)``.
        y: The truth, ``(n,)``.
        given: The score that is already known, ``(n,)``.
        layer: Layer of each head, ``(n,)``.
    """
    rx, ry, rz = (_centred_ranks(v, layer) for v in (x, y, given))
    norm = float(rz @ rz)
    if norm > 0:
        rx, ry = rx - rz * float(rx @ rz) / norm, ry - rz * float(ry @ rz) / norm
    size = math.sqrt(float(rx @ rx) * float(ry @ ry))
    return float(rx @ ry) / size if size > 1e-9 else 0.0


def _centred_ranks(values: np.ndarray, layer: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values))
    for one in np.unique(layer):
        here = layer == one
        r = rankdata(values[here])
        ranks[here] = (r - r.mean()) / max(1, len(r) - 1)
    return ranks


def by_layer_bootstrap(
    x: np.ndarray,
    y: np.ndarray,
    given: np.ndarray,
    layer: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a 95 % interval of `partial_spearman`, drawing layers anew."""
    rng = np.random.default_rng(seed)
    names = np.unique(layer)
    members = {name: np.flatnonzero(layer == name) for name in names}
    found = []
    for _ in range(resamples):
        drawn = rng.choice(names, size=len(names))
        rows = np.concatenate([members[name] for name in drawn])
        label = np.concatenate([np.full(len(members[name]), place) for place, name in enumerate(drawn)])
        found.append(partial_spearman(x[rows], y[rows], given[rows], label))
    low, high = np.quantile(found, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)
