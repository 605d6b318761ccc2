"""How a block leaves a model: what the identity in its place hands back; torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Handed:
    """One value that an identity returns: the sum of some of the block's arguments.

    Attributes:
        arguments: Names of the arguments; the first is a residual stream, the others are added by the block itself
            (a position embedding) and count as zero where they are None. Without any, the value is None.
        positions: Their positions in the signature of the block's ``forward``, the block itself not counted.
        factor: What the sum is multiplied by (``1 / output_scale_factor``); zero for an update that is returned beside
            the stream.
        masks: Names and positions of arguments that the block multiplies its stream by: zeros and ones over the
            stream's first dimensions.
    """

    arguments: tuple[str, ...]
    positions: tuple[int, ...]
    factor: float = 1.0
    masks: tuple[tuple[str, int], ...] = ()

    def given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return these arguments as a call gives them; None for those that it leaves out."""
        places = zip(self.arguments, self.positions, strict=True)
        return [argument(name, position, args, kwargs) for name, position in places]


def argument(name: str, position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return an argument by position or keyword; None if a call leaves it out."""
    return args[position] if position < len(args) else kwargs.get(name)


@dataclass(frozen=True)
class BlockRemoval:
    """How a block of kind ``blocks`` leaves the model.

    Attributes:
        returns: What the identity hands back, in the order in which the block returns it.
        form: ``tensor``, or the type in which several values (or one) are returned: ``tuple`` or ``list``.
        channels: Only the first so many channels (dimension 1) of the input are handed back, for a block whose caller
            concatenated skipped channels to the stream; None for all.
        config_field: Name of the config entry that counts the blocks of its ``ModuleList`` (then the block is
            deleted from the list and the entry falls by one), or None: an identity takes its place.
        shown: Paths below the block of modules and objects that code outside it asks for (the processor of its
            attention); the identity has them too, without weights.
        further: Paths outside the block that go with it, and its own always goes with them: the inner stages of a U
            are one on the way down, one on the way up, the middle and the samplers.
        between: Where the stream enters and leaves what goes, as paths of two modules, if that is more than the
            block; what `returns` says is then about the arguments of the first and the output of the second.
    """

    returns: tuple[Handed, ...] = (Handed(("hidden_states",), (0,)),)
    form: str = "tensor"
    channels: int | None = None
    config_field: str | None = None
    shown: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    between: tuple[str, str] | None = None

    @property
    def main(self) -> int:
        """Index in `returns` of the stream that comes first in the block's signature."""
        parts = enumerate(self.returns)
        streams = [(part.positions[0], index) for index, part in parts if part.positions and part.factor]
        return min(streams)[1]

    def streams(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return what the block does nothing to, from the arguments of its call: a tensor or None for each value."""
        return [self._stream(part, args, kwargs) for part in self.returns]

    def packed(self, values: Sequence[Any]) -> Any:
        """Return `values` in the form in which the block returns them."""
        return values[0] if self.form == "tensor" else tuple(values) if self.form == "tuple" else list(values)

    def stream(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the main stream as it enters the block."""
        return self._stream(self.returns[self.main], args, kwargs)

    def leaving(self, output: Any) -> Any:
        """Return the main stream as it leaves the block."""
        return output if self.form == "tensor" else output[self.main]

    def _stream(self, part: Handed, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = [value for value in part.given(args, kwargs) if value is not None]
        if not given:
            return None
        total = given[0]
        for value in given[1:]:
            total = total + value
        if self.channels is not None:
            total = total[:, : self.channels]
        for name, position in part.masks:
            mask = argument(name, position, args, kwargs)
            if mask is not None:
                total = total * mask.reshape(*mask.shape, *(1,) * (total.ndim - mask.ndim))
        return total if part.factor == 1.0 else total * part.factor
