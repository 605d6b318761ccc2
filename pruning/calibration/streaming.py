"""Sums over attention weights that need one pass over the query blocks (SCORES.md sections 1 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.calibration.softmax import Block, StreamedSoftmax


@dataclass(frozen=True)
class SinkSums:
    """Where the attention of a call goes, averaged over the valid queries that were looked at.

    Attributes:
        mass: (B, H, M) float64, column mass m_j = mean_i A_ij; sums to 1 over the keys.
        square: (B, H, M) float64, q_j = mean_i A_ij^2.
        entropy: (B, H) float64, mean_i (lse_i - sum_j A_ij s_ij), in nats; None if not asked for.
        expected: (B, H, M) float64, mean_i V_ij / M_i: the mass of an indifferent head; None without a mask,
            where it is 1/M.
        count: (B, H) float64, valid queries looked at.
        total: N, all queries.
    """

    mass: Tensor
    square: Tensor
    entropy: Tensor | None
    expected: Tensor | None
    count: Tensor
    total: int


@torch.no_grad()
def sink_sums(softmax: StreamedSoftmax, *, entropy: bool = True) -> SinkSums:
    """Gather `SinkSums` in one pass; two matrix products a block, nothing of size N x M."""
    pairs, keys = softmax.batch * softmax.heads, softmax.keys
    device = softmax.key.device
    mass, square = (torch.zeros(pairs, keys, dtype=torch.float64, device=device) for _ in range(2))
    entropies, count = (torch.zeros(pairs, dtype=torch.float64, device=device) for _ in range(2))
    masked = softmax.call.mask is not None or softmax.call.causal
    expected = torch.zeros_like(mass) if masked else None
    for block in softmax.blocks():
        at, inverse = block.pairs, block.inverse
        mass[at] += torch.bmm(inverse[:, None], block.exp)[:, 0]
        count[at] += (inverse > 0).sum(-1) if masked else inverse.shape[1]
        if expected is not None and block.visible is not None:
            share = block.visible / block.visible.sum(-1, keepdim=True).clamp_min(1)
            expected[at] += share.sum(1)
        if entropy:
            entropies[at] += _entropy(block, softmax.key[at]).sum(-1)
        square[at] += torch.bmm(inverse.square()[:, None], block.exp.square_())[:, 0]
    seen = count.clamp_min(1)[:, None]
    grid = (softmax.batch, softmax.heads, keys)
    return SinkSums(
        mass=(mass / seen).view(grid),
        square=(square / seen).view(grid),
        entropy=(entropies / seen[:, 0]).view(grid[:2]) if entropy else None,
        expected=None if expected is None else (expected / seen).view(grid),
        count=count.view(grid[:2]),
        total=softmax.total,
    )


def _entropy(block: Block, key: Tensor) -> Tensor:
    """Return the entropy of each row, (h, n), using ``sum_j A_ij s_ij = q_i . (sum_j A_ij k_j) + sum_j A_ij b_ij``."""
    score = (block.scaled_query * torch.bmm(block.exp, key)).sum(-1)
    if block.bias is not None:
        score = score + (block.exp * block.bias).sum(-1)
    valid = block.inverse > 0
    return torch.where(valid, block.lse - score * block.inverse, 0.0)


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


@torch.no_grad()
def split_energy(softmax: StreamedSoftmax, sinks: Tensor, gram: Tensor) -> Tensor:
    """Split each head's output in sink and content part, ``o_i = sum_{j in S} A_ij v_j + sum_{j not in S} A_ij v_j``.

    Args:
        softmax: Over all queries or some; sums are scaled up to all.
        sinks: S, bool (B, M).
        gram: ``W_h^T W_h`` of the output projection's columns of each head, (H, d_v, d_v) float32.

    Returns:
        (B, H, 3) float64: sums over queries of ``|W_h o_sink|^2``, ``|W_h o_content|^2`` and their inner product.
    """
    value = softmax.flat(softmax.call.value)  # (B * H, M, d_v)
    is_sink = sinks.repeat_interleave(softmax.heads, dim=0)[:, :, None]
    parts = torch.cat([value * is_sink, value * ~is_sink], dim=-1)  # (B * H, M, 2 d_v)
    metric = gram.repeat(softmax.batch, 1, 1)
    out = torch.zeros(softmax.batch * softmax.heads, 3, dtype=torch.float64, device=value.device)
    for block in softmax.blocks():
        both = torch.bmm(block.exp, parts[block.pairs]) * block.inverse[:, :, None]
        sink, content = both.chunk(2, dim=-1)  # (h, n, d_v) each
        seen_sink = torch.bmm(sink, metric[block.pairs])
        seen_content = torch.bmm(content, metric[block.pairs])
        pairs = ((seen_sink, sink), (seen_content, content), (seen_sink, content))
        out[block.pairs] += torch.stack([(a * b).double().sum((1, 2)) for a, b in pairs], dim=-1)
    return out.view(softmax.batch, softmax.heads, 3) * (softmax.total / softmax.count)
