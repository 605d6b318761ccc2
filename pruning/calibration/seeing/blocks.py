"""Seeing what a block does: to what enters it, or to what leaves the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.calibration.context import Context
from pruning.calibration.driver import OnChange
from pruning.calibration.observer import Observer, Sight
from pruning.calibration.step import Step
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class BlockAt:
    """A block."""

    group: PrunableGroup

    @property
    def key(self) -> str:
        """Its path."""
        return self.group.module


@dataclass(frozen=True)
class Change:
    """What a block changes.

    Attributes:
        before: (B, ...), the block's input, or the model's output.
        after: (B, ...), the block's output, or the model's output without the block.
        weight: w_tau, (B,) float64.
    """

    before: Tensor
    after: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Block(Sight):
    """Sees the `Change` that each block makes of its input; measures give one value per sample, (B,)."""

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[BlockAt]:
        """Return the blocks."""
        return [BlockAt(group) for group in groups if group.kind == "blocks"]

    def watch(self, places: Sequence[BlockAt], observers: Mapping[str, Observer], context: Context) -> None:
        """Hand on the changes by the blocks."""
        for place in places:
            context.driver.blocks[place.group].append(_compare(place, observers, context))


@dataclass(frozen=True)
class Ablation(Block):
    """Sees the `Change` of the model's output when a block is passed by, at the price of a forward per block."""

    needs_calls: ClassVar[bool] = True

    def watch(self, places: Sequence[BlockAt], observers: Mapping[str, Observer], context: Context) -> None:
        """Hand on the changes by the lack of the blocks."""
        for place in places:
            context.driver.ablations[place.group].append(_compare(place, observers, context))


def _compare(place: BlockAt, observers: Mapping[str, Observer], context: Context) -> OnChange:
    def see(before: Tensor, after: Tensor, step: Step) -> None:
        view = Change(before, after, step.weights.to(before.device))
        context.add_samples(place, observers, view, step, torch.arange(len(step.keys)))

    return see
