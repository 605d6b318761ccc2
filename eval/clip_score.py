"""CLIP score: how well images show what their prompts say (Hessel et al. 2021, arXiv 2104.08718).

    100 max(cos(image, text), 0)

per sample; the paper's own scale is 2.5 instead of 100. Texts beyond the network's length are cut.

Observation: ``scores`` float64 ``(N,)``; the facts are those of the network ``clip``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.intervals import mean_interval, ratio_error, ratio_interval
from eval.media import IMAGE
from eval.observation import Observation, Rows, Seen, parts_of
from eval.power import power_of_ratio
from eval.types import Context

NEEDS = ("prompts", "networks.clip")
READS = ("samples", "clip_score")
MEDIA = (IMAGE,)


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Score the images of a subject against the prompts they are made from."""
    assert context.prompts is not None
    prompts_of, network = context.prompts, context.networks["clip"]()
    images = seen["samples"].tensors["samples"]
    parts = parts_of(len(images), context.batch_size)

    def batches(numbers: Sequence[int]) -> Iterator[Tensor]:
        for number in numbers:
            rows = torch.tensor(parts[number])
            prompts = list(prompts_of(rows))
            if len(prompts) != len(rows):
                raise ValueError(
                    f"Context.prompts returned {len(prompts)} prompts for {len(rows)} sample ids"
                )
            yield score(network.images(images[rows]), network.texts(prompts))
            context.progress(f"CLIP score of {name}", int(rows[-1]) + 1, len(images))

    return Observation({"scores": Rows([*map(len, parts)], batches)}, network.facts)


def score(images: Tensor, texts: Tensor) -> Tensor:
    """Return the score of each of ``(B, d)`` images with the text of its row, unit vectors both; float64 ``(B,)``."""
    return 100 * (images.double() * texts.double()).sum(1).clamp(min=0)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the mean score with its interval, and its paired ratio to the reference."""
    base = seen[context.reference]["clip_score"]
    results: dict[str, dict[str, Any]] = {}
    for name in context.subjects:
        found = seen[name]["clip_score"]
        scores = found.tensors["scores"]
        if found.facts != base.facts or scores.shape != base.tensors["scores"].shape:
            raise ValueError(
                f"subject {name!r}, metric 'clip_score': it was observed with another network or number of samples "
                f"than {context.reference!r}; observe both anew"
            )
        results[name] = {"clip_score": float(scores.mean()), "clip_score_ci95": mean_interval(scores)}
        results[name] |= {"clip_score_network": found.facts["name"], "clip_score_mode": found.facts["mode"]}
        if len(scores) > 1 and min(float(scores.sum()), float(base.tensors["scores"].sum())) > 0:
            ratio, error = ratio_error(scores, base.tensors["scores"])
            bounds = ratio_interval(scores, base.tensors["scores"])
            results[name] |= {"clip_score_ratio": ratio, "clip_score_ratio_ci95": bounds}
            results[name] |= power_of_ratio("clip_score", error / ratio, len(scores))
    return results
