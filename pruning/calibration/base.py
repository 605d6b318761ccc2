"""What a statistic is, and the registry that every statistic family fills.

A statistic is a sum over calibration data, kept in float64 under ``stats.values[group][name]``. Where it is
gathered decides its form: rows that enter a group's consumer, an attention call, gradients by activations or by
weights, a block. A new statistic is one new file in this folder that registers one of the six forms; nothing else
has to be edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from pruning.errors import PruningError
from pruning.registry import Registry
from pruning.types import PrunableGroup

if TYPE_CHECKING:
    from pruning.calibration.reading import Reading

CONSUMING_KINDS = ("attention_heads", "ffn_channels", "resnet_channels")

VARIANTS = ("on", "permuted", "influence", "influence_permuted", "guided")
"""Rows besides the plain ones; a statistic of variant v is stored as ``<name>@<v>``. ``on``: weighted with omega of the
sinks; ``influence``: with how far later attention broadcasts an error; each with the same weights at random tokens.
``guided``: both branches of classifier-free guidance mixed (row statistics only)."""

ALWAYS = ("samples",)
"""``samples`` (T,): how many samples each timestep bucket saw; gathered for every group, never asked for."""


@dataclass(frozen=True)
class RowStatistic:
    """A sum over the rows that enter a group's consumer; also gathered for every omega variant.

    Attributes:
        measure: ``(x, u, group) -> sum``, with rows x (R, P) float32 and their weights u (R,) float32, the rows
            being of one timestep bucket.
        by_bucket: Keep timestep buckets apart in a leading dimension T.
        kinds: Kinds of group it is gathered for.
        of_image: The same sum where a 3 x 3 convolution keeps the size of its input, ``(x, u, group) -> sum`` with
            the input x (S, C, H, W) itself and weights u (S,); None if there is no faster way than by rows.
        part_of: A statistic that holds this one, and ``(its sum, group) -> this sum``: where both are gathered, this
            one costs nothing.
    """

    measure: Callable[[Tensor, Tensor, PrunableGroup], Tensor]
    by_bucket: bool = False
    kinds: tuple[str, ...] = CONSUMING_KINDS
    of_image: Callable[[Tensor, Tensor, PrunableGroup], Tensor] | None = None
    part_of: tuple[str, Callable[[Tensor, PrunableGroup], Tensor]] | None = None


@dataclass(frozen=True)
class AttentionStatistic:
    """A sum over samples of what one attention call shows.

    Attributes:
        measure: ``reading -> (B, ...)``, one value a sample of the batch.
        by_bucket: Keep timestep buckets apart in a leading dimension T.
        finish: Applied to the sum at the end (a variance to a standard error).
        weighted: Multiply by the timestep weight w_tau.
        beside: Statistics that are gathered with it, such as its count.
        kinds: Kinds of group it is gathered for (blocks: those that are an attention module themselves).
    """

    measure: Callable[[Reading], Tensor]
    by_bucket: bool = False
    finish: Callable[[Tensor], Tensor] | None = None
    weighted: bool = False
    beside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("attention_heads", "blocks")


@dataclass(frozen=True)
class GradientStatistic:
    """A sum over samples of the units' first-order effects z; also gathered for every omega variant.

    With x (i, c) the consumer's input and q = dL/dx, a unit's effect is ``z_g = sum_i sum_{c in g} q x`` for the
    data loss, and with ``x - mu`` in place of x for the output's projection on random signs.

    Attributes:
        loss: ``data``: L = mean squared error to the target; ``output``: L = <v, model output>, v random signs.
        measure: ``(z, w) -> sum``, z (B, G) float64 and timestep weights w (B,) float64.
        max_units: Not gathered for groups with more units than this.
        beside: Statistics that are gathered with it.
        kinds: Kinds of group it is gathered for.
    """

    loss: Literal["data", "output"]
    measure: Callable[[Tensor, Tensor], Tensor]
    max_units: int | None = None
    beside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = CONSUMING_KINDS


@dataclass(frozen=True)
class SensitivityStatistic:
    """A sum over rows of the gradient q = dL/dy by a consumer's output y, L = <v, model output>, v random signs.

    Attributes:
        measure: ``(q, w) -> sum``, with rows q (R, C) float32 and timestep weights w (R,) float32.
        beside: Statistics that are gathered with it.
        kinds: Kinds of group it is gathered for.
    """

    measure: Callable[[Tensor, Tensor], Tensor]
    beside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = CONSUMING_KINDS


@dataclass(frozen=True)
class WeightStatistic:
    """What the gradient of the data loss by a group's weights says, signed and summed over samples and timesteps.

    A sample's sum runs from its least noise upwards and ends, for good, at the first timestep whose loss is below
    `threshold` times the largest that the sample has had. The sum is one float32 copy of the groups' weights; only
    what `measure` makes of it stays.

    Attributes:
        measure: ``(weights, gradients, group) -> (G,)``, both by parameter path and on the model's device.
        threshold: See above; 0 takes all timesteps.
        kinds: Kinds of group it is gathered for.
    """

    measure: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], PrunableGroup], Tensor]
    threshold: float = 0.0
    kinds: tuple[str, ...] = CONSUMING_KINDS


@dataclass(frozen=True)
class BlockStatistic:
    """A sum over samples of how a block matters.

    Attributes:
        measure: ``(before, after) -> (B,)``. With `ablates` these are the model's outputs with and without the
            block, which costs one more forward a block; else the block's input and output.
        ablates: See `measure`.
        weighted: Multiply by the timestep weight.
        kinds: Kinds of group it is gathered for.
    """

    measure: Callable[[Tensor, Tensor], Tensor]
    ablates: bool = False
    weighted: bool = True
    kinds: tuple[str, ...] = ("blocks",)


Statistic = (
    RowStatistic
    | AttentionStatistic
    | GradientStatistic
    | SensitivityStatistic
    | WeightStatistic
    | BlockStatistic
)

STATISTICS: Registry[Statistic] = Registry("statistic")


def register(name: str, statistic: Statistic) -> None:
    """File `statistic` under `name`.

    Raises:
        ValueError: If the name is taken or is not a lower-case identifier.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"statistic {name!r}: names are lower-case identifiers")
    STATISTICS.register(name)(statistic)


def needs_targets(statistic: Statistic) -> bool:
    """Tell whether a statistic needs targets or further forwards, which a sampling run does not have."""
    if isinstance(statistic, BlockStatistic):
        return statistic.ablates
    return isinstance(statistic, (GradientStatistic, SensitivityStatistic, WeightStatistic))


def expand_needs(needs: Iterable[str]) -> dict[str, Statistic]:
    """Return the statistics named in `needs` and what is gathered beside them, sorted by name.

    Raises:
        PruningError: For a name that is not registered, listing those that are.
    """
    wanted: dict[str, Statistic] = {}
    queue = [name for name in needs if name not in ALWAYS]
    while queue:
        name = queue.pop()
        if name in wanted:
            continue
        try:
            wanted[name] = STATISTICS[name]
        except ValueError as error:
            raise PruningError(f"{error}; a new statistic is one new file in pruning/calibration") from None
        queue += getattr(wanted[name], "beside", ())
    return dict(sorted(wanted.items()))
