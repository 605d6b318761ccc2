"""Taking the inner stages out of a U, and saying so in the values of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pruning.surgery.identity import replace_by_identity
from pruning.types import PrunableGroup

OF_THE_INPUT = ("sample_size",)
"""Config entries that may be as long as the list of stages, but hold sizes of the input."""


def take_out(model: nn.Module, block: PrunableGroup) -> None:
    """Take a block, or the innermost stages with all between them, out of `model`."""
    assert block.removal is not None
    if block.removal.between is None:
        replace_by_identity(model, block)
    else:
        drop_stage(model)


def drop_stage(model: Any) -> None:
    """Delete the innermost pair of stages of a U, whose samplers go with it; the middle is not touched."""
    del model.down_blocks[-1]
    del model.up_blocks[0]
    model.down_blocks[-1].downsamplers = None
    if hasattr(model, "num_upsamplers"):
        model.num_upsamplers -= 1


def with_a_stage_less(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a UNet's config that list its stages, without the innermost one.

    They go from the outside to the inside, and the other way for the way up (``up_…``, ``reverse_…``).
    """
    stages = len(config["down_block_types"])
    return {
        name: list(value[1:] if name.startswith(("up_", "reverse_")) else value[:-1])
        for name, value in config.items()
        if isinstance(value, (list, tuple)) and len(value) == stages and name not in OF_THE_INPUT
    }
