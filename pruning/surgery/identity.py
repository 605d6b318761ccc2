"""What stands where a residual block was."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pruning.types import PrunableGroup


class IdentityBlock(nn.Module):
    """Returns its first argument, with the return signature of the block it replaces.

    Args:
        returns_tuple: Return ``(hidden_states,)``, as `Transformer2DModel` does with ``return_dict=False``.
    """

    def __init__(self, returns_tuple: bool = False) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        """Return `hidden_states` unchanged; whatever else the block was given is not needed."""
        return (hidden_states,) if self.returns_tuple else hidden_states


def replace_by_identity(model: nn.Module, block: PrunableGroup) -> None:
    """Put an `IdentityBlock` where a group of kind ``blocks`` is."""
    assert block.removal is not None
    parent, _, name = block.module.rpartition(".")
    setattr(model.get_submodule(parent), name, IdentityBlock(block.removal.returns_tuple))
