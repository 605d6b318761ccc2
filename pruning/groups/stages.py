"""The inner stages of a U: from the stream that the last downsampler halves to the stream that is doubled again.

A UNet is a list of stages down, a middle, and a list of stages up, which take the skipped streams of their partners in
reverse. The innermost pair, its middle and its samplers can go together where what enters them has the shape of what
leaves them. The stages beside them then meet, as in a UNet that has one stage less.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from torch import nn

from pruning.removal import BlockRemoval
from pruning.types import config_of

DOWN, MIDDLE, UP = "down_blocks", "mid_block", "up_blocks"


def inner_stages(
    model: nn.Module, blocks: Container[str], concatenated: Callable[[str], bool]
) -> tuple[str, BlockRemoval] | None:
    """Return the path of a UNet's innermost stage and how it goes, or None if it cannot.

    Args:
        model: The model.
        blocks: Paths of the blocks of the model; the middle must be one, for where it cannot be left out.
        concatenated: Tells whether a skipped stream is concatenated to what a module is given.
    """
    config = config_of(model) if hasattr(model, "config") else {}
    down, up = getattr(model, DOWN, None), getattr(model, UP, None)
    if not isinstance(down, nn.ModuleList) or not isinstance(up, nn.ModuleList) or len(down) != len(up):
        return None
    last = len(down) - 1
    if last < 1 or len(config.get("down_block_types", ())) != len(down):
        return None
    before, inner, behind = down[last - 1], down[last], up[0]
    halved, doubled = _samplers(before, "downsamplers"), _samplers(behind, "upsamplers")
    if halved != 1 or doubled != 1 or _samplers(inner, "downsamplers"):
        return None
    # A stage's layers and the sampler before it are what its partner takes back, and nothing beside the stream.
    layers, partners = getattr(inner, "resnets", ()), getattr(behind, "resnets", ())
    if len(partners) != len(layers) + 1 or any(
        hasattr(stage, "skip_conv") for stage in (before, inner, behind)
    ):
        return None
    if not all(concatenated(f"{UP}.0.resnets.{k}") for k in range(len(partners))):
        return None
    channels = stage_channels(before)
    if channels is None or channels != stage_channels(behind):
        return None
    further = [f"{DOWN}.{last - 1}.downsamplers", f"{UP}.0"]
    middle = getattr(model, MIDDLE, None)
    if middle is not None and not isinstance(getattr(middle, "removal", None), BlockRemoval):
        if MIDDLE not in blocks:
            return None
        further.append(MIDDLE)
    removal = BlockRemoval(further=tuple(further), between=(f"{further[0]}.0", f"{UP}.0"))
    return f"{DOWN}.{last}", removal


def _samplers(stage: nn.Module, name: str) -> int:
    return len(getattr(stage, name, None) or ())


def stage_channels(stage: nn.Module) -> int | None:
    """Return the channels of the stream that leaves the layers of a stage."""
    layers = getattr(stage, "resnets", None)
    return (
        channels_behind(layers[len(layers) - 1])
        if isinstance(layers, nn.ModuleList) and len(layers)
        else None
    )


def channels_behind(module: nn.Module) -> int | None:
    """Return the channels that leave a block, or the blocks that it is made of if they agree."""
    removal = getattr(module, "removal", None)
    if isinstance(removal, BlockRemoval) and removal.channels is not None:
        return removal.channels
    found = {getattr(part, "out_channels", None) for part in (module, *module.children())} - {None}
    channels = getattr(module, "out_channels", found.pop() if len(found) == 1 else None)
    return channels if isinstance(channels, int) else None
