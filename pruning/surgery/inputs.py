"""Give a module of which units went the entries of its arguments that belong to those that stay.

Some models compute a table for all heads once and hand it to every attention module (rotary tables of LTX and Mochi,
masks repeated by head). The table stays whole, since other modules read it too; a hook on a module that lost heads
narrows what that one is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.types import NarrowedInput, PrunableGroup


class KeptInputs:
    """A forward pre-hook that narrows arguments to the kept units.

    Attributes:
        parts: What is narrowed.
        kept: Units that stay, sorted, of all that the arguments have entries for.
        units: Units that the arguments have entries for.
    """

    def __init__(self, parts: Iterable[NarrowedInput], kept: Sequence[int], units: int) -> None:
        self.parts, self.kept, self.units = tuple(parts), tuple(kept), units

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments with those that have entries for all units narrowed."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        for part in self.parts:
            found, extra = bound.arguments, bound.arguments.get("kwargs")
            if part.argument not in found and isinstance(extra, dict):
                found = extra  # Attention hands its cross_attention_kwargs on
            if found.get(part.argument) is not None:
                found[part.argument] = self._narrow(found[part.argument], part)
        return bound.args, bound.kwargs

    def _narrow(self, value: Any, part: NarrowedInput) -> Any:
        if isinstance(value, Tensor):
            own = torch.tensor(self.kept)[:, None] * part.unit_size + torch.arange(part.unit_size)
            period = self.units * part.unit_size
            starts = torch.arange(0, value.shape[part.axis], period)
            index = (starts[:, None] + own.flatten()).flatten()
            return value.index_select(part.axis, index.to(value.device))
        if isinstance(value, Mapping):
            return {key: self._narrow(item, part) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._narrow(item, part) for item in value)
        return value


def kept_inputs(module: nn.Module) -> KeptInputs | None:
    """Return what narrows the arguments of `module`, if anything does."""
    return next((hook for hook in module._forward_pre_hooks.values() if isinstance(hook, KeptInputs)), None)


def narrow_inputs(module: nn.Module, group: PrunableGroup, kept: Sequence[int]) -> KeptInputs:
    """Let `module`, which owns `group`, see the entries of the kept units alone, counted among those it has now."""
    before = kept_inputs(module)
    if before is None:
        hook = KeptInputs(group.narrowed, kept, group.num_units)
        module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        return hook
    before.kept = tuple(before.kept[unit] for unit in kept)
    return before
