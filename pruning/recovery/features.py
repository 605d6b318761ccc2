"""Distillation on block features: how far the outputs of the student's blocks are from those of the dense model's.

Only inner dimensions are ever cut, so that a block puts out what its dense twin does, in the same width: nothing has to
be projected, and what does not agree is refused.

Few channels of a transformer may be thousands of times larger than the others (massive activations: Sun et al., arXiv
2402.17762), and a plain squared error would train nothing else. So the power of a channel counts up to `MASSIVE` times
that of the median channel of the same sample, beyond which its error is scaled down as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.groups.listed import listed_blocks
from pruning.models.outputs import tensors_in
from pruning.recovery.twins import Twin

MASSIVE = 10.0
"""Times the power of the median channel, from which on a channel's error counts less."""


class Features:
    """What pairs of blocks put out while they are watched.

    Args:
        pairs: Blocks of the student, and those of the dense model that they were.
    """

    def __init__(self, pairs: Sequence[Twin]) -> None:
        self._pairs = pairs
        self._found: dict[Twin, tuple[list[Any], list[Any]]] = {}
        self._is_open = False

    @contextmanager
    def watched(self, student: nn.Module, teacher: nn.Module) -> Iterator[None]:
        """Hang hooks on the blocks of both; they are removed at the end."""
        with ExitStack() as stack:
            for pair in self._pairs:
                for side, block in enumerate(
                    (student.get_submodule(pair.slim), teacher.get_submodule(pair.dense))
                ):
                    see = partial(self._see, pair, side)
                    stack.callback(block.register_forward_hook(see).remove)
            yield

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take what blocks put out meanwhile, and not when they run once more in a backward pass."""
        self._found = {pair: ([], []) for pair in self._pairs}
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    def _see(self, pair: Twin, side: int, block: nn.Module, args: Any, output: Any) -> None:
        if self._is_open:
            self._found[pair][side].append(output)

    def distance(self, rows: int) -> Tensor:
        """Return the mean over blocks of `feature_error` of what was taken, and let go of it, float32 (rows,).

        Raises:
            PruningError: If no block was called, or one put out what its dense twin does not in number or shape.
        """
        found, self._found = self._found, {}
        errors = []
        for pair, sides in found.items():
            mine, theirs = ([t for t in tensors_in(side) if t.is_floating_point()] for side in sides)
            if [t.shape for t in mine] != [t.shape for t in theirs]:
                raise PruningError(
                    f"recovery: feature_weight: block {pair.slim!r} puts out {_words(mine)}, and {pair.dense!r} of the "
                    f"dense model {_words(theirs)}; leave that pair out, or set feature_weight to 0"
                )
            errors += [feature_error(a, b, rows) for a, b in zip(mine, theirs, strict=True) if a.numel()]
        if not errors:
            raise PruningError(
                "recovery: feature_weight: no block of the model was called; set feature_weight to 0"
            )
        return torch.stack(errors).mean(0)


def feature_error(mine: Tensor, theirs: Tensor, rows: int) -> Tensor:
    """Return the squared error of a feature of each sample, relative to the square of the wanted one, float32 (rows,).

    With the power ``p_c`` of channel c of a sample, its mean square over positions, and ``q_c = min(p_c, 10 median)``::

        sum_c (q_c / p_c) mean (mine_c - theirs_c)^2 / sum_c q_c

    Args:
        mine: (B, C), (B, N, C), (B, C, H, W) or (B, C, T, H, W); where B is not `rows`, the whole stands for every row.
        theirs: The same.
        rows: Samples.
    """
    mine, theirs = by_channel(mine, rows), by_channel(theirs.detach().to(mine.device), rows)
    power = theirs.square().mean(1)  # (B, C)
    middle = power.median(dim=1, keepdim=True).values
    middle = torch.where(middle > 0, middle, power.mean(dim=1, keepdim=True))
    counted = torch.minimum(power, MASSIVE * middle)
    tiny = torch.finfo(torch.float32).tiny
    scale = torch.where(power > 0, counted / power.clamp_min(tiny), 1.0)
    error = (scale * (mine - theirs).square().mean(1)).sum(1) / counted.sum(1).clamp_min(tiny)
    return error.expand(rows)


def by_channel(feature: Tensor, rows: int) -> Tensor:
    """Return a feature as samples, positions and channels, float32 (B, N, C)."""
    feature = feature.float()
    if feature.ndim < 2 or len(feature) != rows:
        return feature.reshape(1, -1, feature.shape[-1] if feature.ndim else 1)
    if feature.ndim >= 4:  # images and videos, channels first
        feature = feature.movedim(1, -1)
    return feature.reshape(rows, -1, feature.shape[-1])


def pairs_by_path(student: nn.Module, teacher: nn.Module) -> list[Twin]:
    """Return the blocks of two models that have the same; else it is a PruningError."""
    mine, theirs = listed_blocks(student), listed_blocks(teacher)
    if mine != theirs or not mine:
        raise PruningError(
            "recovery: feature_weight: which block of the dense model a block of the slim one was is not known here; "
            "give `features`, the result of `pairs(teacher, plan)`, or set feature_weight to 0"
        )
    return [Twin(path, path) for path in mine]


def _words(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "nothing"
