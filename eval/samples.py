"""Samples of a subject, drawn once for all metrics that look at them.

Observation: ``samples``, of which number i is of sample id i: images, videos or sounds as in `eval.media`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.media import medium_of
from eval.observation import Observation, Rows, Seen
from eval.types import Context
from eval.workers import side_by_side

NEEDS = ("sample",)


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Draw the samples of a subject, batch by batch.

    Raises:
        ValueError: While they are drawn, if the sample function returns NaN, another dtype, shape or number of samples.
    """
    return Observation({"samples": Rows(context.num_samples, _batches(context, name))})


def _batches(context: Context, name: str) -> Iterator[Tensor]:
    sample = context.subjects[name].sample
    assert sample is not None
    parts = torch.arange(context.num_samples).split(context.batch_size)
    for ids, batch in zip(parts, side_by_side(sample, parts, context.workers), strict=True):
        place = f"subject {name!r}, samples {ids[0]} to {ids[-1]}"
        medium_of(batch, place)
        if len(batch) != len(ids):
            raise ValueError(f"{place}: {len(batch)} samples came for {len(ids)} sample ids")
        yield batch.cpu()
        context.progress(f"sampling {name}", int(ids[-1]) + 1, context.num_samples)
