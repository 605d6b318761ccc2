"""The rows that enter a group's consumer: channels by position, or unfolded as the consumer's weight reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pruning.calibration.attention.sites import weighting_site
from pruning.errors import PruningError
from pruning.groups.words import CONVOLUTIONS
from pruning.types import PrunableGroup, matrix_of, parameter_path

CHUNK_ELEMENTS = 2**24
"""Elements of unfolded rows held at once (64 MiB of float32), or one sample's if that is more."""


@dataclass(frozen=True)
class Consumer:
    """What reads a group, and the slice of its input that belongs to the group.

    Attributes:
        key: Name of the slice, under which its statistics are kept; see `PrunableGroup.consumer_key`.
        path: Path of the module, or of the matrix of a stack.
        module: A linear layer, or a convolution with all channels in one convolution group, or what holds the stack.
        start: First input channel of unit 0.
        channels: Input channels of the group.
        units: G, the units of the group.
        outputs: C, the channels that come out.
        site: The attention module whose sinks weight its rows; None where rows have no token weights.
    """

    key: str
    path: str
    module: nn.Module
    start: int
    channels: int
    units: int
    outputs: int
    site: str | None = None

    @classmethod
    def of(cls, model: nn.Module, group: PrunableGroup) -> Consumer:
        """Find the one consumer of `group`.

        Raises:
            PruningError: If the consumer is of another kind, or there are several.
        """
        module, read = model.get_submodule(group.consumer), group.read_by
        whole = parameter_path(read.path)
        plain = isinstance(module, CONVOLUTIONS) and module.groups == 1 and module.padding_mode == "zeros"
        if not (plain or isinstance(module, nn.Linear) or whole != read.path):
            raise PruningError(
                f"group {group.name!r}: its consumer {group.consumer!r} is a {type(module).__name__}; calibration "
                "reads linear layers, zero-padded convolutions without channel groups, and stacks of matrices"
            )
        return cls(
            group.consumer_key,
            group.consumer if whole == read.path else read.path,
            module,
            read.offset,
            group.num_units * read.unit_size,
            group.num_units,
            len(matrix_of(model.get_parameter(whole), read.path)),
            weighting_site(model, group),
        )

    @property
    def columns(self) -> int:
        """P, the columns that `rows` yields."""
        area = math.prod(self.module.kernel_size) if isinstance(self.module, CONVOLUTIONS) else 1
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
        return x.shape[2:].numel() if isinstance(self.module, CONVOLUTIONS) else x.shape[1:-1].numel()

    def tokens(self, x: Tensor) -> Tensor:
        """Return the group's channels of an input (or its gradient) by position, (S, N, C), not unfolded."""
        if isinstance(self.module, CONVOLUTIONS):
            return x[:, self.start : self.start + self.channels].flatten(2).transpose(1, 2)
        part = x[..., self.start : self.start + self.channels]
        return part.reshape(x.shape[0], self.num_tokens(x), self.channels)

    def output_rows(self, y: Tensor) -> Tensor:
        """Return what leaves (or its gradient) by position, (S, N, C)."""
        if isinstance(self.module, CONVOLUTIONS):
            return y.flatten(2).transpose(1, 2)
        return y.reshape(y.shape[0], y.shape[1:-1].numel(), y.shape[-1])

    def rows(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield (samples, their rows (s, N, P) float32) over an input; N output positions for a convolution."""
        if isinstance(self.module, CONVOLUTIONS):
            positions = x.shape[2:].numel() // math.prod(self.module.stride)  # of the output
            per_sample = self.columns * max(1, positions)
        else:
            per_sample = x.shape[1:].numel()
        step = max(1, CHUNK_ELEMENTS // max(per_sample, 1))
        for first in range(0, x.shape[0], step):
            part = slice(first, min(first + step, x.shape[0]))
            yield part, self._unfold(x[part])

    def channel_rows(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield all samples and their rows (S, N, C) float32, not unfolded."""
        yield slice(0, x.shape[0]), self.tokens(x).float()

    def _unfold(self, x: Tensor) -> Tensor:
        conv = self.module
        if not isinstance(conv, CONVOLUTIONS):
            return self.tokens(x).float()
        image = x[:, self.start : self.start + self.channels].float()
        if isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str):
            unfolded = F.unfold(image, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
            return unfolded.transpose(1, 2)
        image = F.pad(image, conv._reversed_padding_repeated_twice)  # 'same' may pad more on one side
        return _patches(image, conv.kernel_size, conv.dilation, conv.stride)


def _patches(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return the patches of x (S, C, ...), as a convolution's weight reads them, (S, N, P)."""
    sides = len(kernel)
    for side, (size, gap, step) in enumerate(zip(kernel, dilation, stride, strict=True)):
        x = x.unfold(2 + side, gap * (size - 1) + 1, step)[..., ::gap]
    positions_first = x.movedim(1, 1 + sides)  # (S, positions, C, kernel)
    return positions_first.flatten(1 + sides).flatten(1, sides)


def consumers_of(model: nn.Module, groups: Iterable[PrunableGroup]) -> list[Consumer]:
    """Return every consumer of every group.

    Raises:
        PruningError: For a consumer of a kind that calibration cannot read.
    """
    return [Consumer.of(model, one) for group in groups for one in group.consumers]
