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
        if (
            isinstance(value, (bool, int, float, str))
            and not attribute.startswith("_")
            and attribute != "training"
        ):
            setattr(identity, attribute, value)
    for path in block.removal.shown:
        _show(identity, old, path)
    identity.train(old.training)
    setattr(model.get_submodule(parent), name, identity)


def _show(identity: nn.Module, old: nn.Module, path: str) -> None:
    """Give the identity what stands at `path` of the block: an empty module, or an object that is none."""
    owner, name = identity, ""
    value: Any = old
    for name in path.split("."):
        value = getattr(value, name)
        if isinstance(value, nn.Module):
            if not hasattr(owner, name):
                setattr(owner, name, nn.Module())
            owner = getattr(owner, name)
        else:
            setattr(owner, name, value)
            return
