"""Softmax attention, a bounded block at a time: the only code that forms attention weights.

Everything that calibration says about attention is a sum over query blocks; the N x M map never exists. Scores
are float32, less their row's maximum (docs/scores.md section 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pruning.errors import PruningError

BLOCK_ELEMENTS = 2**20
"""Attention weights held at once (4 MiB of float32), or one row of M if that is more."""

MASKED_BIAS = -1000.0
"""An additive mask at or below this hides the key (diffusers writes -10000 or the dtype's minimum)."""


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one softmax attention.

    Attributes:
        path: Module path of the attention module.
        query: (B, H, N, d).
        key: (B, K, M, d); K divides H (grouped-query attention).
        value: (B, K, M, d_v).
        mask: Broadcasts to (B, H, N, M): bool (True = visible) or added to the scores; None without.
        causal: Query i sees keys j <= i.
        scale: Multiplies the scores; None for 1/sqrt(d).
        cross: Keys come from elsewhere than the queries.
    """

    path: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    cross: bool = False


@dataclass(frozen=True)
class Block:
    """Attention weights of some (sample, head) pairs and some of their queries: ``A = exp * inverse``.

    Attributes:
        pairs: Slice of the B * H pairs, h of them.
        rows: Slice of the queries that are looked at, n of them.
        exp: (h, n, M) exp(score - row maximum); scratch memory that the next block overwrites.
        inverse: (h, n) reciprocal row sums; 0 for a fully masked row, which counts for nothing.
        visible: (h, n, M) bool, if there is a mask.
    """

    pairs: slice
    rows: slice
    exp: Tensor
    inverse: Tensor
    visible: Tensor | None = None


class StreamedSoftmax:
    """Yields the attention weights of a call block by block.

    Args:
        call: The attention call.
        queries: int64 (B, n), the queries to look at in each sample; None for all.

    Raises:
        PruningError: If the call is not of a form known here.
    """

    def __init__(self, call: AttentionCall, queries: Tensor | None = None) -> None:
        shapes = [tuple(t.shape) for t in (call.query, call.key, call.value)]
        if any(len(shape) != 4 for shape in shapes) or shapes[0][1] % shapes[1][1]:
            raise PruningError(
                f"attention {call.path!r}: query, key and value have shapes {shapes}; expected (batch, heads, "
                "tokens, channels) with the query heads a multiple of the key heads"
            )
        self.call = call
        self.batch, self.heads, self.total, self.width = shapes[0]
        self.keys = shapes[1][2]
        self.queries = queries
        self.count = self.total if queries is None else queries.shape[1]

    @cached_property
    def key(self) -> Tensor:
        """Keys (B * H, M, d) float32, expanded to the query heads."""
        key = self.call.key
        repeats = self.heads // key.shape[1]
        wide = key.repeat_interleave(repeats, dim=1) if repeats > 1 else key
        return wide.reshape(self.batch * self.heads, self.keys, -1).float()

    @cached_property
    def _scaled_query(self) -> Tensor:
        query = self.call.query
        if self.queries is not None:
            index = self.queries[:, None, :, None].expand(-1, self.heads, -1, self.width)
            query = query.gather(2, index)
        scale = 1 / math.sqrt(self.width) if self.call.scale is None else self.call.scale
        return query.reshape(self.batch * self.heads, self.count, self.width).float() * scale

    def blocks(self) -> Iterator[Block]:
        """Yield blocks that cover every looked-at query of every (sample, head) pair once."""
        pairs, keys = self.batch * self.heads, self.keys
        rows_step = min(self.count, max(1, BLOCK_ELEMENTS // keys))
        pairs_step = min(pairs, max(1, BLOCK_ELEMENTS // (rows_step * keys)))
        scratch = torch.empty(pairs_step * rows_step * keys, device=self.key.device)
        for pair in range(0, pairs, pairs_step):
            for row in range(0, self.count, rows_step):
                rows = slice(row, min(row + rows_step, self.count))
                yield self._block(slice(pair, min(pair + pairs_step, pairs)), rows, scratch)

    def _block(self, pairs: slice, rows: slice, scratch: Tensor) -> Block:
        query, key = self._scaled_query[pairs, rows], self.key[pairs]
        shape = (query.shape[0], query.shape[1], self.keys)
        scores = scratch[: math.prod(shape)].view(shape)
        torch.bmm(query, key.transpose(1, 2), out=scores)
        visible, bias = self._mask(pairs, rows)
        if bias is not None:
            scores.add_(bias)
        if visible is not None:
            scores.masked_fill_(~visible, -torch.inf)
        top = scores.amax(-1, keepdim=True)
        if visible is not None:
            top.masked_fill_(top == -torch.inf, 0.0)
        total = scores.sub_(top).exp_().sum(-1)
        inverse = total.reciprocal()
        if visible is not None:
            inverse.masked_fill_(total == 0, 0.0)
        return Block(pairs, rows, scores, inverse, visible)

    def _mask(self, pairs: slice, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        """Return visibility (h, n, M) bool and bias (h, n, M) of a block, each None if there is none."""
        call, device = self.call, self.key.device
        if call.mask is None and not call.causal:
            return None, None
        pair = torch.arange(pairs.start, pairs.stop, device=device)
        sample, head = pair // self.heads, pair % self.heads
        row = torch.arange(rows.start, rows.stop, device=device)
        query = row.expand(len(pair), -1) if self.queries is None else self.queries[sample][:, rows]  # (h, n)
        visible, bias = None, None
        if call.causal:
            visible = query[:, :, None] >= torch.arange(self.keys, device=device)
        if call.mask is not None:
            mask = call.mask.detach()[(None,) * (4 - call.mask.ndim)]
            mask = mask.expand(self.batch, self.heads, -1, -1).to(device)
            at = query if mask.shape[2] > 1 else torch.zeros_like(query)
            mask = mask[sample[:, None], head[:, None], at].expand(-1, -1, self.keys)
            if mask.dtype == torch.bool:
                shown = mask
            else:
                shown = mask > MASKED_BIAS
                bias = torch.where(shown, mask.float(), 0.0)
            visible = shown if visible is None else visible & shown
        return visible, bias
