"""LPIPS: distance in a network's eyes to the reference's sample, same noise (Zhang et al. 2018, arXiv 1801.03924).

Beside it stand pixel measures of the same pairs (`eval.consistency`, `eval.pairs`). It says how little has changed, not
how good the samples are. Of videos the frames are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.consistency import check_alike, mean_of, over_frames
from eval.media import IMAGE, VIDEO, medium_of
from eval.observation import Seen, filled
from eval.types import Context

READS = ("samples",)
NEEDS_TO_COMPUTE = ("networks.lpips",)
MEDIA = (IMAGE, VIDEO)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the mean distance to the reference's samples, with its interval and power."""
    network = context.networks["lpips"]()
    reference = seen[context.reference]["samples"].tensors["samples"]
    results: dict[str, dict[str, Any]] = {}
    for name in context.subjects:
        samples = seen[name]["samples"].tensors["samples"]
        check_alike(name, "lpips", "samples", samples, reference)
        found = filled(len(samples), _distances(context, name, samples, reference, network))
        names = {"lpips_name": network.name, "lpips_mode": network.mode}
        results[name] = mean_of("lpips", found) | names
    return results


def _distances(
    context: Context, name: str, samples: Tensor, reference: Tensor, network: Any
) -> Iterator[Tensor]:
    """Yield the distances of a subject's samples to the reference's, batch by batch."""
    pairs = zip(samples.split(context.batch_size), reference.split(context.batch_size), strict=True)
    done = 0
    for ours, theirs in pairs:
        if name == context.reference:
            found = torch.zeros(len(ours), dtype=torch.float64)
        elif medium_of(ours) == VIDEO:
            found = over_frames(network.distances, ours, theirs)
        else:
            found = network.distances(ours, theirs)
        done += len(ours)
        context.progress(f"LPIPS of {name}", done, len(samples))
        yield found
