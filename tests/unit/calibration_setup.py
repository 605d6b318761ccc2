"""Batches and small helpers that the calibration tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pruning.calibration.softmax import AttentionCall
from torch import nn

from pruning.data.batches import NoisedBatch
from tests.models import call

BUCKETS = 4


def noised(model: nn.Module, samples: int = 4, batch_size: int = 4) -> Callable[[], Iterator[NoisedBatch]]:
    """Return a source of batches: the same inputs for a sample at every timestep bucket, whatever the batch size."""
    arguments = call(model, samples)
    generator = torch.Generator().manual_seed(5)
    targets = torch.randn(samples, BUCKETS, *main_input(arguments).shape[1:], generator=generator)

    def batches() -> Iterator[NoisedBatch]:
        for first in range(0, samples, batch_size):
            part = slice(first, min(first + batch_size, samples))
            ids = torch.arange(samples)[part]
            for bucket in range(BUCKETS):
                times = torch.full((len(ids),), bucket * 250 + 30)
                chosen = {name: value[part] for name, value in arguments.items()}
                yield NoisedBatch({**chosen, "timestep": times}, targets[part, bucket], bucket, ids, times)

    return batches


def main_input(arguments: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the noised samples among a denoiser's call arguments."""
    return arguments["sample"] if "sample" in arguments else arguments["hidden_states"]


def attention_call(
    batch: int = 2, heads: int = 3, queries: int = 20, keys: int = 20, width: int = 4, seed: int = 0
) -> AttentionCall:
    """Return a random attention call whose scores have a spread of about 2."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, width, generator=generator) * 2
    key, value = torch.randn(2, batch, heads, keys, width, generator=generator)
    return AttentionCall("attn", query, key, value)


def dense_attention(attention: AttentionCall) -> torch.Tensor:
    """Return the whole softmax map, (B, H, N, M) float64, by the textbook; NaN in fully masked rows."""
    repeats = attention.query.shape[1] // attention.key.shape[1]
    key = attention.key.double().repeat_interleave(repeats, 1)
    scale = attention.query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
    scores = attention.query.double() @ key.transpose(-1, -2) * scale
    if attention.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    if attention.mask is not None and attention.mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention.mask, -torch.inf)
    elif attention.mask is not None:
        scores = scores + attention.mask.double()
    return scores.softmax(-1)
