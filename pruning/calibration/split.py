"""Attention statistics: sink part and content part of a head's output (SCORES.md section 4).

- ``split_energy`` (H, 3): sums over rows of w_tau times ``|W_h o_sink|^2``, ``|W_h o_content|^2`` and their inner
  product, where ``o_i = sum_{j in S} A_ij v_j + sum_{j not in S} A_ij v_j`` and W_h are the head's columns of the
  consumer. Divide by ``row_weight`` for means.
- ``value_ratio`` (H,): mean norm of the sinks' values over the median norm of all values; sum over the samples in
  which S is not empty, which ``value_ratio_count`` (H,) counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruning.calibration.base import AttentionStatistic, register
from pruning.calibration.reading import Reading


def split_energy(reading: Reading) -> Tensor:
    """(B, H, 3)."""
    return reading.split


def value_ratio(reading: Reading) -> Tensor:
    """(B, H); 0 where S is empty."""
    value = reading.call.value
    norms = value.double().norm(dim=-1)  # (B, K, M)
    norms = norms.repeat_interleave(reading.softmax.heads // value.shape[1], dim=1)
    sinks = reading.sinks[:, None]
    at_sinks = (norms * sinks).sum(-1) / sinks.sum(-1).clamp_min(1)
    typical = norms.median(-1).values
    return torch.where(typical > 0, at_sinks / typical.masked_fill(typical <= 0, 1.0), 0.0)


def value_ratio_count(reading: Reading) -> Tensor:
    """(B, H); 1 where S is not empty."""
    return reading.sinks.any(-1).double()[:, None].expand(-1, reading.softmax.heads)


register("split_energy", AttentionStatistic(split_energy, weighted=True, kinds=("attention_heads",)))
register("value_ratio", AttentionStatistic(value_ratio, beside=("value_ratio_count",)))
register("value_ratio_count", AttentionStatistic(value_ratio_count, beside=("value_ratio",)))
