"""Seeing what a block does: to what enters it, or to what leaves the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.calibration.observer import Bench, Observer, Sight
from pruning.calibration.step import Step
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class BlockAt:
    """A block; `key` is its path."""

    key: str


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
    """Sees the `Change` by each block; measures give one value per sample, (B,).

    Attributes:
        ablated: The change of the model's output, which costs one more forward per block; else that of its own input.
    """

    ablated: bool = False

    @property
    def needs_targets(self) -> bool:
        """For further forwards."""
        return self.ablated

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> list[BlockAt]:
        """Return the blocks."""
        return [BlockAt(group.module) for group in groups if group.kind == "blocks"]

    def watch(self, places: Sequence[BlockAt], observers: Mapping[str, Observer], bench: Bench) -> None:
        """Hand on the changes."""

        def watch_one(place: BlockAt) -> None:
            def see(before: Tensor, after: Tensor, step: Step) -> None:
                view = Change(before, after, step.weights.to(before.device))
                for name, observer in observers.items():
                    buckets = step.buckets if observer.by == "bucket" else None
                    bench.sums.add_samples(place.key, name, observer.measure(view).double(), buckets)

            on = bench.driver.on_ablation if self.ablated else bench.driver.on_block
            on(place.key, see)

        for place in places:
            watch_one(place)
