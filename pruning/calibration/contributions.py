"""What single units put into their consumer's output, token by token: a look at one sample, for a picture.

With W_h (C, u) a unit's columns of the consumer's weight, x_hi (u,) its part of row i and mu_h the mean that folding
takes, the unit says ``W_h x_hi``; folding moves the constant ``W_h mu_h`` into the bias, and ``W_h (x_hi - mu_h)`` is
left out when the unit goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.calibration.consumer import Consumer
from pruning.calibration.instrument import Instrument, Listener, frozen
from pruning.calibration.step import Step, StepReader, checked_weights
from pruning.data.batches import NoisedBatch
from pruning.errors import PruningError
from pruning.models.families import denoise
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class Unit:
    """A unit to look at.

    Attributes:
        group: Its group.
        index: Its number in the group.
        columns: W_h, its columns of the consumer's weight, (C, u) float64.
        mean: mu_h, the mean of its inputs, (u,) float64.
    """

    group: PrunableGroup
    index: int
    columns: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Contribution:
    """Norms of what a unit puts into its consumer's output, float64; T timestep buckets, N tokens.

    Attributes:
        before: ``||W_h x_hi||``, (T, N).
        folded: ``||W_h mu_h||``, the same at every token and timestep.
        after: ``||W_h (x_hi - mu_h)||``, (T, N).
    """

    before: Tensor
    folded: float
    after: Tensor


def contributions(
    model: nn.Module,
    units: Sequence[Unit],
    batches: Iterable[NoisedBatch],
    *,
    num_train_timesteps: float,
    timestep_buckets: int,
) -> list[Contribution]:
    """Run the model on one sample at every timestep bucket and return what each of `units` contributes.

    Args:
        model: The dense denoiser; its result does not change, and no hook stays.
        units: What to look at.
        batches: One sample, once a bucket.
        num_train_timesteps: Upper end of the timesteps.
        timestep_buckets: T.

    Raises:
        PruningError: For a consumer that calibration cannot read, NaN, or a bucket that `batches` leaves out.
    """
    seen = _Rows({unit.group.name for unit in units})
    consumers = {unit.group.name: Consumer.of(model, unit.group) for unit in units}
    reader = StepReader(
        model, num_train_timesteps, checked_weights("uniform", timestep_buckets, num_train_timesteps)
    )
    with (
        frozen(model),
        Instrument(model, [], list(consumers.values()), [], [], reader, seen),
        torch.no_grad(),
    ):
        for batch in batches:
            reader.identify(batch.sample_ids, batch.bucket)
            denoise(model, batch.call)
    return [_contribution(unit, seen.of(unit.group, timestep_buckets)) for unit in units]


class _Rows(Listener):
    """Listens to an `Instrument` and keeps the rows that enter the consumers of `groups`, by timestep bucket."""

    def __init__(self, groups: Iterable[str]) -> None:
        self._found: dict[str, dict[int, Tensor]] = {name: {} for name in groups}

    def of(self, group: PrunableGroup, buckets: int) -> Tensor:
        """Return the rows of a group, (T, N, P) float64.

        Raises:
            PruningError: If a bucket was not seen.
        """
        found = self._found[group.name]
        if missing := [bucket for bucket in range(buckets) if bucket not in found]:
            raise PruningError(
                f"group {group.name!r}: no rows entered its consumer at timestep bucket {missing[0]}"
            )
        return torch.stack([found[bucket] for bucket in range(buckets)])

    def on_input(self, consumer: Consumer, x: Tensor, step: Step, owner: Tensor) -> None:
        """Rows enter a consumer; the first leading row is the sample."""
        rows = torch.cat([part for _, part in consumer.rows(x[:1])])[0]  # (N, P)
        self._found[consumer.group.name][int(step.buckets[0])] = rows.detach().to("cpu", torch.float64)


def _contribution(unit: Unit, rows: Tensor) -> Contribution:
    """Return the norms of one unit from the rows (T, N, P) of its group."""
    x = rows.unflatten(2, (unit.group.num_units, -1))[:, :, unit.index]  # (T, N, u)
    return Contribution(
        before=(x @ unit.columns.T).norm(dim=2),
        folded=float((unit.columns @ unit.mean).norm()),
        after=((x - unit.mean) @ unit.columns.T).norm(dim=2),
    )
