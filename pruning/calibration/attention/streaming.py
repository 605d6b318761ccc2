"""Sums over attention weights that need one pass over the query blocks (docs/scores.md sections 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.calibration.attention.softmax import StreamedSoftmax


@dataclass(frozen=True)
class SinkSums:
    """Where the attention of a call goes, averaged over the valid queries that were looked at.

    Attributes:
        mass: (B, H, M) float64, column mass m_j = mean_i A_ij; sums to 1 over the keys.
        square: (B, H, M) float64, q_j = mean_i A_ij^2.
        expected: (B, H, M) float64, mean_i V_ij / M_i: the mass of an indifferent head; None without a mask,
            where it is 1/M.
        total: N, all queries.
    """

    mass: Tensor
    square: Tensor
    expected: Tensor | None
    total: int


@torch.no_grad()
def sink_sums(softmax: StreamedSoftmax) -> SinkSums:
    """Gather `SinkSums` in one pass; two matrix products per block, nothing of size N x M."""
    pairs, keys = softmax.batch * softmax.heads, softmax.keys
    device = softmax.key.device
    mass, square = (torch.zeros(pairs, keys, dtype=torch.float64, device=device) for _ in range(2))
    count = torch.zeros(pairs, dtype=torch.float64, device=device)
    masked = softmax.call.mask is not None or softmax.call.causal
    expected = torch.zeros_like(mass) if masked else None
    for block in softmax.blocks():
        at, inverse = block.pairs, block.inverse
        mass[at] += torch.bmm(inverse[:, None], block.exp)[:, 0]
        count[at] += (inverse > 0).sum(-1) if masked else inverse.shape[1]
        if expected is not None and block.visible is not None:
            share = block.visible / block.visible.sum(-1, keepdim=True).clamp_min(1)
            expected[at] += share.sum(1)
        square[at] += torch.bmm(inverse.square()[:, None], block.exp.square_())[:, 0]
    seen = count.clamp_min(1)[:, None]
    grid = (softmax.batch, softmax.heads, keys)
    return SinkSums(
        mass=(mass / seen).view(grid),
        square=(square / seen).view(grid),
        expected=None if expected is None else (expected / seen).view(grid),
        total=softmax.total,
    )


@torch.no_grad()
def attended(softmax: StreamedSoftmax, key_weight: Tensor) -> Tensor:
    """Return the head mean of ``sum_j A_ij c_j``, how much of c each query attends to.

    Args:
        softmax: Over all queries.
        key_weight: c, (B, M).

    Returns:
        (B, N) float64; 0 for fully masked rows.
    """
    column = key_weight.float().repeat_interleave(softmax.heads, dim=0)[:, :, None]  # (B * H, M, 1)
    out = torch.zeros(softmax.batch * softmax.heads, softmax.count, dtype=torch.float64, device=column.device)
    for block in softmax.blocks():
        out[block.pairs, block.rows] = (
            torch.bmm(block.exp, column[block.pairs])[:, :, 0] * block.inverse
        ).double()
    return out.view(softmax.batch, softmax.heads, softmax.count).mean(1)
