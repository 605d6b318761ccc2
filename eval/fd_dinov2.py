"""Fréchet distance on DINOv2 features, which rank pictures more as people do (Stein et al. 2023, arXiv 2306.04675).

Observation: ``features`` ``(N, d)`` of the network ``dinov2``. Called FD-DINOv2 for the published ViT-L/14 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.fid import frechet_results
from eval.image_features import features_of, observe_with
from eval.media import IMAGE
from eval.observation import Observation, Seen
from eval.types import Context

NEEDS, NEEDS_DATA = ("networks.dinov2",), ("real", "networks.dinov2")
READS, READS_DATA = ("samples", "fd_dinov2"), ("fd_dinov2",)
MEDIA = (IMAGE,)
MIN_IMAGES = 2


def observe(context: Context, name: str, seen: Seen) -> Observation:
    """Extract the features of a subject's images, or of the real ones for the data."""
    return observe_with(context.networks["dinov2"](), context, name, seen)


def compute(context: Context, seen: Mapping[str, Seen]) -> dict[str, dict[str, Any]]:
    """Return for every subject the distance to the real images; see `eval.fid.frechet_results`."""
    return frechet_results(context, *features_of(context, seen, "fd_dinov2"), key="fd_dinov2")
