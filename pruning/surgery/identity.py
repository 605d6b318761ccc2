"""What stands where a residual block was."""

from __future__ import annotations

from typing import Any

from torch import nn

from pruning.removal import BlockRemoval
from pruning.types import PrunableGroup


class IdentityBlock(nn.Module):
    """Hands back the streams that it is given, with the call and the return form of the block it replaces.

    Args:
        removal: Which arguments it returns, in which order and form.
    """

    def __init__(self, removal: BlockRemoval) -> None:
        super().__init__()
        self.removal = removal

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the streams unchanged; whatever else the block was given is not needed."""
        return self.removal.packed(self.removal.streams(args, kwargs))


def replace_by_identity(model: nn.Module, block: PrunableGroup) -> None:
    """Put an `IdentityBlock` where a group of kind ``blocks`` is.

    It keeps the block's plain attributes, since the code around a block asks for them (``has_cross_attention``).
    """
    assert block.removal is not None
    parent, _, name = block.module.rpartition(".")
    old, identity = model.get_submodule(block.module), IdentityBlock(block.removal)
    for attribute, value in vars(old).items():
        if isinstance(value, (bool, int, float, str)) and not attribute.startswith("_") and attribute != "training":
            setattr(identity, attribute, value)
    identity.train(old.training)
    setattr(model.get_submodule(parent), name, identity)
