"""Pipelines that the rules do not serve, each with its reason; nothing else here knows a pipeline by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exceptional:
    """What is other in a pipeline.

    Attributes:
        reason: Why.
        refused: It cannot be recorded.
        points_only: Its latents cannot be noised anew.
        alone: Rows of several samples cannot share a call.
        without: Arguments that are left out.
    """

    reason: str
    refused: bool = False
    points_only: bool = False
    alone: bool = False
    without: tuple[str, ...] = ()


EXCEPTIONS: dict[str, Exceptional] = {
    "AnyFlowFARPipeline": Exceptional(
        "its calls read keys and values that earlier calls have stored", refused=True
    ),
    "Flux2KleinKVPipeline": Exceptional(
        "its calls read keys and values that earlier calls have stored", refused=True
    ),
    "GlmImagePipeline": Exceptional(
        "its cache of reference images is empty without them", without=("kv_caches",)
    ),
    "OmniGenPipeline": Exceptional("its rows share positions and an attention mask", alone=True),
}
"""By class of pipeline."""
