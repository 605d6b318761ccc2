"""What a statistic is: the protocol of observers, and the registry that the files of `statistics` fill.

Calibration runs a model (`driver`) and lets observers look. An `Observer` is one statistic. *Where* it looks is said by
a way of seeing (`sees`; a file each in `pruning.calibration.seeing`), *what* it adds up by a function of what it sees::

    register("input_sq", Observer(Input(), lambda rows: rows.weight @ rows.x.square(), lambda at: (at.columns,)))

Its sums are kept in float64 under ``stats.values[place][name]``, never raw activations. A new statistic is one new file
in `statistics` that registers it. A new way of seeing is one class: a file in `seeing`, or part of the statistic's own;
only what the driver does not tell of yet takes an edit there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from pruning.calibration.rows import consumers_of
from pruning.calibration.triangle import Symmetric, packed_size
from pruning.registry import Registry
from pruning.settings import WEIGHTINGS
from pruning.types import PrunableGroup

if TYPE_CHECKING:
    from pruning.calibration.context import Context

VARIANTS = tuple(name for name in WEIGHTINGS if name != "off")
"""Weighted rows besides the plain ones; a statistic of variant v is stored as ``<name>@<v>``. ``on``: weighted by the
sinks; ``influence``: by how far later attention broadcasts an error; each with the same weights at random tokens
(``permuted``). ``guided``: both branches of classifier-free guidance mixed (statistics of rows only)."""

ALWAYS = "samples"
"""``samples`` (T,): how many samples each timestep bucket saw; gathered at every place, never asked for."""


class Sight(Protocol):
    """A way of seeing: a frozen dataclass, so that observers that see alike are served together.

    Attributes:
        needs_calls: It takes gradients or further forwards, which a run that is only watched does not have.
    """

    needs_calls: ClassVar[bool] = False

    @property
    def needs_targets(self) -> bool:
        """Whether it takes what the model should answer."""
        return False

    @property
    def needs_means(self) -> bool:
        """Whether it takes channel means from a first pass."""
        return False

    def places(self, model: nn.Module, groups: Sequence[PrunableGroup]) -> Sequence[Any]:
        """Return where it looks, at every consumer unless it says otherwise.

        A place has a `key`, under which sums are kept, and the sizes that shapes take.
        """
        return consumers_of(model, groups)

    def variants(self, place: Any, asked: Sequence[str]) -> list[str]:
        """Return for which of the variants asked for sums are gathered at a place besides the plain ones."""
        return []

    def held(self, place: Any) -> int:
        """Return the bytes that seeing holds at a place during a run, besides the sums."""
        return 0

    def watch(self, places: Sequence[Any], observers: Mapping[str, Observer], context: Context) -> None:
        """Ask the driver to be told what happens at these places, and hand it to the observers."""
        ...


@dataclass(frozen=True)
class Observer:
    """A statistic.

    Attributes:
        sees: A way of seeing; its file says what a view is and at what places.
        measure: view -> what is summed: the sum over the rows that the view shows, or, where a view shows whole samples
            (attention, blocks), one value per sample.
        shape: place -> shape of a sum there, the dimension of `by` left out.
        by: ``bucket``: timestep buckets are kept apart in a leading dimension T; ``sample``: samples are kept apart in
            a leading dimension R, as means over their timesteps (attention only; ``meta["samples_seen"]`` says which).
        of_image: `measure` where the rows are the patches that a 3 x 3 convolution reads (see `statistics.patches`).
        part_of: Another statistic, of the same `by`, that holds this one, and ``(its sum, place) -> this sum``: where
            both are gathered, this one costs nothing.
        symmetric: Measures are `Symmetric` matrices, of whose sum a `Triangle` is kept.
    """

    sees: Sight
    measure: Callable[[Any], Tensor | Symmetric]
    shape: Callable[[Any], tuple[int, ...]]
    by: Literal["", "bucket", "sample"] = ""
    of_image: Callable[[Any], Tensor | Symmetric] | None = None
    part_of: tuple[str, Callable[[Any, Any], Tensor]] | None = None
    symmetric: bool = False

    def bytes(self, place: Any, buckets: int, variants: Sequence[str] = (), *, kept: bool = False) -> int:
        """Return what its sums take at a place, in memory or as they are `kept`, with T buckets and these variants."""
        sums = 1 + len(self.sees.variants(place, variants))
        shape = self.shape(place)
        numbers = packed_size(shape[0]) if self.symmetric else math.prod(shape)
        each = 4 if self.symmetric and kept else 8
        return each * numbers * sums * (buckets if self.by == "bucket" else 1)


STATISTICS: Registry[Observer] = Registry("statistic")


def register(name: str, observer: Observer) -> None:
    """File `observer` under `name`.

    Raises:
        ValueError: If the name is taken or is not a lower-case identifier.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"statistic {name!r}: names are lower-case identifiers")
    STATISTICS.register(name)(observer)


def find(needs: Iterable[str] | Mapping[str, Observer]) -> dict[str, Observer]:
    """Return observers by name: those registered under the names in `needs`, sorted, or those given.

    Raises:
        PruningError: For a name that is not registered, listing those that are.
    """
    if isinstance(needs, Mapping):
        return dict(needs)
    return {name: STATISTICS[name] for name in sorted({*needs} - {ALWAYS})}
