"""The rows that enter a group's consumer: channels by position, or unfolded as the consumer's weight reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.types import PrunableGroup

CHUNK_ELEMENTS = 2**24
"""Elements of unfolded rows held at once (64 MiB of float32), or one sample's if that is more."""


@dataclass(frozen=True)
class Consumer:
    """A group's consumer module and the slice of its input that belongs to the group.

    Attributes:
        group: The group.
        module: A linear layer, or a 2-D convolution with all channels in one convolution group.
        start: First input channel of unit 0.
        channels: Input channels of the group.
    """

    group: PrunableGroup
    module: nn.Module
    start: int
    channels: int

    @classmethod
    def of(cls, model: nn.Module, group: PrunableGroup) -> Consumer:
        """Find the consumer of `group`.

        Raises:
            PruningError: If the consumer is neither of the two.
        """
        module = model.get_submodule(group.consumer)
        plain = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        if not (plain or isinstance(module, nn.Linear)):
            raise PruningError(
                f"group {group.name!r}: its consumer {group.consumer!r} is a {type(module).__name__}; calibration "
                "reads linear layers and zero-padded 2-D convolutions without channel groups"
            )
        part = group.consumed_by[0]
        return cls(group, module, part.offset, group.num_units * part.unit_size)

    @property
    def columns(self) -> int:
        """P, the columns that `rows` yields."""
        area = (
            self.module.kernel_size[0] * self.module.kernel_size[1]
            if isinstance(self.module, nn.Conv2d)
            else 1
        )
        return self.channels * area

    def image(self, x: Tensor) -> Tensor | None:
        """Return the channels (S, C, H, W) that a 3 x 3 convolution reads if it keeps their size, else None."""
        conv = self.module
        if not isinstance(conv, nn.Conv2d) or conv.padding not in ((1, 1), "same"):
            return None
        if (conv.kernel_size, conv.stride, conv.dilation) != ((3, 3), (1, 1), (1, 1)):
            return None
        return x[:, self.start : self.start + self.channels].float()

    def num_tokens(self, x: Tensor) -> int:
        """Return N, the positions of an input, which `tokens` yields."""
        return x.shape[2:].numel() if isinstance(self.module, nn.Conv2d) else x.shape[1:-1].numel()

    def tokens(self, x: Tensor) -> Tensor:
        """Return the group's channels of an input (or its gradient) by position, (S, N, C), not unfolded."""
        if isinstance(self.module, nn.Conv2d):
            return x[:, self.start : self.start + self.channels].flatten(2).transpose(1, 2)
        part = x[..., self.start : self.start + self.channels]
        return part.reshape(x.shape[0], -1, self.channels)

    def rows(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (samples, their rows (s, N, P) float32) over an input; N output positions for a convolution."""
        if isinstance(self.module, nn.Conv2d):
            per_sample = self.columns * _output_positions(self.module, x)
        else:
            per_sample = x[0].numel()
        step = max(1, CHUNK_ELEMENTS // max(per_sample, 1))
        for first in range(0, x.shape[0], step):
            part = slice(first, min(first + step, x.shape[0]))
            yield part, self._unfold(x[part])

    def _unfold(self, x: Tensor) -> Tensor:
        if not isinstance(self.module, nn.Conv2d):
            return self.tokens(x).float()
        conv = self.module
        image = x[:, self.start : self.start + self.channels].float()
        if isinstance(conv.padding, str):  # 'same' may pad more on one side
            left, right, top, bottom = conv._reversed_padding_repeated_twice
            image, padding = F.pad(image, (left, right, top, bottom)), 0
        else:
            padding = conv.padding
        unfolded = F.unfold(image, conv.kernel_size, conv.dilation, padding, conv.stride)
        return unfolded.transpose(1, 2)


def _output_positions(conv: nn.Conv2d, x: Tensor) -> int:
    return max(1, (x.shape[2] * x.shape[3]) // (conv.stride[0] * conv.stride[1]))


def check_finite(x: Tensor, where: str, describe: object) -> None:
    """Raise PruningError naming module, samples and timestep bucket if `x` (S, ...) holds NaN or infinity.

    Args:
        x: The tensor.
        where: What it is, naming the module.
        describe: Callable that says what leading rows of `x` are.
    """
    if bool(
        torch.isfinite(x.detach().sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32))
    ):
        return
    bad = ~torch.isfinite(x.detach()).reshape(x.shape[0], -1).all(1)
    if bool(bad.any()) and callable(describe):
        rows = bad.nonzero().flatten().tolist()
        raise PruningError(
            f"{where} holds NaN or infinity ({describe(rows)}); check the model's weights and dtype and the data"
        )
