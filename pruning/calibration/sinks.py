"""Attention statistics: where the mass goes, by head, key and timestep bucket (SCORES.md section 1).

All are sums over samples, each sample's value being a mean over its (valid, looked-at) queries; H heads of the
site, M keys, T timestep buckets. Divide by ``samples`` for means.

- ``key_mass`` (T, H, M): column mass m_j = mean_i A_ij; the keys sum to 1.
- ``key_mass_sq`` (T, H, M): second moment q_j = mean_i A_ij^2.
- ``key_mass_error`` (T, H, M): standard error of the sum ``key_mass`` that comes from looking at n of N queries,
  ``sqrt(sum over samples of (q - m^2) / (n - 1) (1 - n/N))``; 0 when all are looked at. The draws of different
  samples are independent; those of one sample at several steps of a trajectory are not.
- ``entropy`` (T, H): mean_i (lse_i - sum_j A_ij s_ij), nats.
- ``sink_mass`` (T, H): mass on the sink set S of the sample, which the head mean defines.
- ``max_key_mass`` (T, H): the largest m_j.
- ``sink_indicator`` (T, M): the soft indicator s_j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.base import AttentionStatistic, register
from pruning.calibration.reading import Reading


def key_mass(reading: Reading) -> Tensor:
    """m_j, (B, H, M)."""
    return reading.sums.mass


def key_mass_sq(reading: Reading) -> Tensor:
    """q_j, (B, H, M)."""
    return reading.sums.square


def key_mass_variance(reading: Reading) -> Tensor:
    """Sampling variance of m_j under simple random sampling without replacement, (B, H, M)."""
    sums = reading.sums
    n = sums.count[..., None]
    unseen = 1 - reading.softmax.count / sums.total
    spread = (sums.square - sums.mass.square()).clamp_min(0.0)
    return spread / (n - 1).clamp_min(1.0) * unseen


def entropy(reading: Reading) -> Tensor:
    """Entropy of the attention rows, (B, H)."""
    assert reading.sums.entropy is not None, (
        "the calibrator asks for the entropy when this statistic is needed"
    )
    return reading.sums.entropy


def sink_mass(reading: Reading) -> Tensor:
    """sum_{j in S} m_j, (B, H)."""
    return (reading.sums.mass * reading.sinks[:, None]).sum(-1)


def max_key_mass(reading: Reading) -> Tensor:
    """max_j m_j, (B, H)."""
    return reading.sums.mass.amax(-1)


def sink_indicator(reading: Reading) -> Tensor:
    """s_j, (B, M)."""
    return reading.indicator


for _measure in (key_mass, key_mass_sq, entropy, sink_mass, max_key_mass, sink_indicator):
    register(_measure.__name__, AttentionStatistic(_measure, by_bucket=True))
register(
    "key_mass_error",
    AttentionStatistic(key_mass_variance, by_bucket=True, finish=torch.sqrt, beside=("key_mass",)),
)
