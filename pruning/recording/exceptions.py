"""Pipelines that the rules do not serve, each with its reason; nothing else here knows a pipeline by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exceptional:
    """What is other in a pipeline.

    Attributes:
        reason: Why.
        refused: It cannot be recorded.
        without: Arguments that are left out.
        first_row: Arguments of which the denoiser reads the first row for all rows.
    """

    reason: str
    refused: bool = False
    without: tuple[str, ...] = ()
    first_row: frozenset[str] = frozenset()


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
    "OmniGenPipeline": Exceptional(
        "its rotary embedding has the positions of the first row for all rows",
        first_row=frozenset({"position_ids"}),
    ),
}
"""By class of pipeline."""
