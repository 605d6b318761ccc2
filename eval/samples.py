"""Samples of a subject, drawn once for all metrics that look at them.

Observation: ``samples``, of which number i is of sample id i: images, videos or sounds as in `eval.media`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from eval.media import medium_of
from eval.observation import Observation, Rows, Seen, parts_of
from eval.types import Context
from eval.workers import side_by_side

NEEDS = ("sample",)


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Draw the samples of a subject, batch by batch.

    Raises:
        ValueError: While they are drawn, if the sample function returns NaN, another dtype, shape or number of samples.
    """
    parts = parts_of(context.num_samples, context.batch_size)
    return Observation({"samples": Rows([*map(len, parts)], partial(_batches, context, name, parts))})


def _batches(context: Context, name: str, parts: Sequence[range], numbers: Sequence[int]) -> Iterator[Tensor]:
    sample = context.subjects[name].sample
    assert sample is not None
    chosen = [torch.tensor(parts[number]) for number in numbers]
    for ids, batch in zip(chosen, side_by_side(sample, chosen, context.workers), strict=True):
        place = f"subject {name!r}, samples {ids[0]} to {ids[-1]}"
        medium_of(batch, place)
        if len(batch) != len(ids):
            raise ValueError(f"{place}: {len(batch)} samples came for {len(ids)} sample ids")
        yield batch.cpu()
        context.progress(f"sampling {name}", int(ids[-1]) + 1, context.num_samples)
