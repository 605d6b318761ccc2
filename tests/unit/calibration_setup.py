"""Batches and small helpers that the calibration tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration.attention.softmax import AttentionCall
from pruning.calibration.triangle import Symmetric, Triangle
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.settings import Calibrate, SinkWeights
from tests.models import call

BUCKETS = 4


def noised(model: nn.Module, samples: int = 4, batch_size: int = 4) -> NoisedBatches:
    """Return batches: the same inputs for a sample at every timestep bucket, whatever the batch size."""
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

    return NoisedBatches(batches, 1000, BUCKETS)


def whole(matrix: Symmetric) -> Tensor:
    """Return a symmetric matrix (n, n) as it is read when it was summed once."""
    total = Triangle.zeros(matrix.n)
    matrix.add_to(total)
    return total.whole()


def held(batches: Sequence[NoisedBatch]) -> NoisedBatches:
    """Return batches that are in memory already."""
    return NoisedBatches(lambda: batches, 1000, BUCKETS)


def settings(**values: Any) -> Calibrate:
    """Return settings with the timestep buckets of `noised`; those of `SinkWeights` may be among them."""
    sinks = {name: values.pop(name) for name in list(values) if name in SinkWeights.__dataclass_fields__}
    return Calibrate(timestep_buckets=BUCKETS, sink_weights=SinkWeights(**sinks), **values)


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
