"""Observers at work: which look where, what they are given, what that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pruning.calibration.attention.reading import Readings
from pruning.calibration.driver import Driver
from pruning.calibration.observer import Observer, Sight, find
from pruning.calibration.routing import Gates
from pruning.calibration.rows import Consumer
from pruning.calibration.sinks.weights import TokenWeights
from pruning.calibration.step import Step, by_bucket
from pruning.calibration.sums import Sums
from pruning.calibration.trajectories import Trajectories
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class Context:
    """What ways of seeing work with during a run.

    Attributes:
        driver: Tells what the model does.
        readings: Attention calls, each read once for all who look.
        token_weights: Weights of the rows that come by.
        sums: Where statistics go.
        trajectories: Where those go that keep samples apart.
        means: Channel means from a first pass, (C,) float64 by consumer key.
        rows: Rows to look at in each sample; None for all.
        guided: Mixes the rows of two branches of guidance; None where no one asked for them.
        seed: Of all draws.
        gates: Of the rows inside experts.
    """

    driver: Driver
    readings: Readings
    token_weights: TokenWeights
    sums: Sums
    trajectories: Trajectories
    means: Mapping[str, Tensor]
    rows: int | None
    guided: Callable[..., tuple[Tensor, Step, Tensor]] | None
    seed: int
    gates: Gates

    def weights(self, place: Consumer, step: Step, row_of: Tensor) -> Tensor:
        """Return what the leading entries of a consumer's input weigh, (S,) float64.

        It is w_tau, inside an expert times the squared gate of the row (docs/scores.md section 3).
        """
        weights, sent = step.weights[row_of], self.gates.of(place.path, len(row_of))
        return weights if sent is None else weights * sent.gate.to(weights).square()

    def add(
        self,
        place: Any,
        observers: Mapping[str, Observer],
        view: Any,
        bucket: int | None = None,
        suffixes: Sequence[str] = ("",),
    ) -> None:
        """Add what each observer measures of a view, all of one timestep bucket, to the sums of these suffixes."""
        for name, observer in observers.items():
            assert observer.by != "sample", "only views of whole samples tell samples apart"
            value, at = observer.measure(view), bucket if observer.by == "bucket" else None
            self.sums.add(place.key, [name + suffix for suffix in suffixes], value, at)

    def add_samples(
        self, place: Any, observers: Mapping[str, Observer], view: Any, step: Step, row_of: Tensor
    ) -> None:
        """Add what each observer measures of the samples in a view, which belong to the step's rows `row_of`."""
        for name, observer in observers.items():
            values = observer.measure(view)
            assert isinstance(values, Tensor), "one value per sample"
            if observer.by == "sample":
                self.trajectories.add(place.key, name, values, step, row_of)
                continue
            for bucket, here in by_bucket(step.buckets[row_of]):
                at = bucket if observer.by == "bucket" else None
                self.sums.add(place.key, [name], values[here].double().sum(0), at)


@dataclass(frozen=True)
class Watch:
    """Observers that see alike, and where."""

    sees: Sight
    places: tuple[Any, ...]
    observers: Mapping[str, Observer]


def watches(
    model: nn.Module, groups: Sequence[PrunableGroup], observers: Mapping[str, Observer]
) -> list[Watch]:
    """Sort observers by what they see.

    Raises:
        PruningError: For a place of a kind that calibration cannot read.
    """
    by_sight: dict[Sight, dict[str, Observer]] = {}
    for name, observer in observers.items():
        by_sight.setdefault(observer.sees, {})[name] = observer
    return [Watch(sees, tuple(sees.places(model, groups)), found) for sees, found in by_sight.items()]


def sum_bytes(
    model: nn.Module,
    groups: Iterable[PrunableGroup],
    needs: Iterable[str] | Mapping[str, Observer],
    *,
    variants: Sequence[str] = (),
    timestep_buckets: int = 8,
    kept: bool = False,
) -> int:
    """Return the memory that a calibration in one round holds: its sums, and what ways of seeing keep meanwhile.

    Sums over attention keys are left out: how many keys there are is known only when the model runs.

    Args:
        model: The denoiser; on the meta device too.
        groups: What may be removed.
        needs: As in `calibrate`.
        variants: As in `calibrate`.
        timestep_buckets: T.
        kept: Return instead what the statistics take when they are done, in memory or on the disk.
    """
    total = 0
    for watch in watches(model, list(groups), find(needs)):
        for place in watch.places:
            total += 0 if kept else watch.sees.held(place)
            total += sum(
                one.bytes(place, timestep_buckets, variants, kept=kept) for one in watch.observers.values()
            )
    return total
