"""What single units put into their consumer's output, token by token: a look at one sample, for a picture.

With W_h (C, u) a unit's columns of the consumer's weight, x_hi (u,) its part of row i and mu_h the mean that folding
takes, the unit says ``W_h x_hi``; folding moves the constant ``W_h mu_h`` into the bias, and ``W_h (x_hi - mu_h)`` is
left out when the unit goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from pruning.calibration.observer import Observer
from pruning.calibration.passes import calibrate
from pruning.calibration.seeing import Input
from pruning.data.batches import NoisedBatches
from pruning.errors import PruningError
from pruning.types import PrunableGroup


@dataclass(frozen=True)
class Unit:
    """A unit to look at.

    Attributes:
        group: Its group, with one consumer.
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


ROWS = Observer(Input(), lambda rows: rows.x, lambda at: (0, at.columns), by="bucket")
"""The rows themselves: of one sample at every timestep bucket there is nothing to add up."""


def contributions(model: nn.Module, units: Sequence[Unit], batches: NoisedBatches) -> list[Contribution]:
    """Run the model on one sample at every timestep bucket and return what each of `units` contributes.

    Args:
        model: The dense denoiser; its result does not change, and no hook stays.
        units: What to look at.
        batches: One sample, once per bucket.

    Raises:
        PruningError: For a consumer that calibration cannot read, NaN, or batches that show something else.
    """
    groups = {unit.group.name: unit.group for unit in units}
    seen = calibrate(model, groups.values(), batches, needs={"rows": ROWS})
    times = seen.meta["samples"]
    if times != [1] * len(times):
        raise PruningError(
            "contributions are those of one sample at every timestep bucket, and the batches show "
            f"{', '.join(f'{count:g}' for count in times)}; guidance, for one, asks the model twice"
        )
    return [_contribution(unit, seen.get(unit.group.consumer_key, "rows")) for unit in units]


def _contribution(unit: Unit, rows: Tensor) -> Contribution:
    """Return the norms of one unit from the rows (T, N, P) of its group."""
    x = rows.unflatten(2, (unit.group.num_units, -1))[:, :, unit.index]  # (T, N, u)
    return Contribution(
        before=(x @ unit.columns.T).norm(dim=2),
        folded=float((unit.columns @ unit.mean).norm()),
        after=((x - unit.mean) @ unit.columns.T).norm(dim=2),
    )
