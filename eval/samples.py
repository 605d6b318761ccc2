"""Samples of a subject, drawn once for all metrics that look at them.

Observation: ``samples``, of which number i is of sample id i: images, videos or sounds as in `eval.media`.
"""

from __future__ import annotations

import torch

from eval.media import medium_of
from eval.observation import Observation, Seen
from eval.types import Context
from eval.workers import side_by_side

NEEDS = ("sample",)


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Draw the samples of a subject.

    Raises:
        ValueError: If the sample function returns NaN, another dtype, shape or number of samples.
    """
    sample = context.subjects[name].sample
    assert sample is not None
    parts = torch.arange(context.num_samples).split(context.batch_size)
    batches = []
    for ids, batch in zip(parts, side_by_side(sample, parts, context.workers), strict=True):
        place = f"subject {name!r}, samples {ids[0]} to {ids[-1]}"
        medium_of(batch, place)
        if len(batch) != len(ids):
            raise ValueError(f"{place}: {len(batch)} samples came for {len(ids)} sample ids")
        batches.append(batch.cpu())
        context.progress(f"sampling {name}", int(ids[-1]) + 1, context.num_samples)
    return Observation({"samples": torch.cat(batches)})
