"""The sums of one place in the form in which they are kept, in memory and on disk, and as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from torch import Tensor

from pruning.calibration.triangle import Symmetric, Triangle

Found = MutableMapping[str, "Tensor | Triangle"]

ABOUT_ZERO, ABOUT_MEAN = "triangle", "centred"
"""How the name of a triangle goes on: ``<name>:<one of these>:<n>``."""

MEAN = ("input_sum", "row_weight")
"""Statistics whose quotient is the mean that a moment is kept about, in the moment's own variant."""

MOMENTS = frozenset({"input_moment"})
"""Statistics that are kept about the mean where it was gathered, too."""


class Kept(Mapping[str, Tensor]):
    """Sums of a place by name, float64. Symmetric ones are made each time they are read, whole or by rows.

    Args:
        raw: What is kept, by the name that it is kept under; it may read from disk.
    """

    def __init__(self, raw: Mapping[str, Tensor]) -> None:
        self.raw = raw
        self._keys = {key.partition(":")[0]: key for key in raw}

    @classmethod
    def of(cls, found: Found) -> Kept:
        """Take the sums of a place, which is emptied: triangles are rounded to float32, moments about the mean."""
        raw: dict[str, Tensor] = {}
        for name in list(found):
            value = found[name]
            if isinstance(value, Tensor):
                raw[name] = value
                continue
            mean = _mean(name, found)
            if mean is not None:
                total, weight = mean
                Symmetric.product(total[None], total.new_tensor([-1 / weight])).add_to(value)
            raw[f"{name}:{ABOUT_ZERO if mean is None else ABOUT_MEAN}:{value.n}"] = value.packed.float()
            del found[name], value
        return cls(raw)

    def __getitem__(self, name: str) -> Tensor:
        found = self.by_rows(name)
        return found if isinstance(found, Tensor) else found.whole()

    def by_rows(self, name: str) -> Tensor | _AboutZero:
        """Return a sum as something whose rows are read."""
        _, _, form = self._keys[name].partition(":")
        kept = self.raw[self._keys[name]]
        if not form:
            return kept
        about, _, n = form.partition(":")
        return _AboutZero(Triangle(kept, int(n)), _mean(name, self) if about == ABOUT_MEAN else None)

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(frozen=True)
class _AboutZero:
    """A symmetric sum about zero, float64, of the triangle that is kept of it.

    Attributes:
        triangle: What is kept.
        mean: What it is kept about: the sum of the rows (n,) and of their weights; None for zero.
    """

    triangle: Triangle
    mean: tuple[Tensor, float] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.triangle.shape

    def __getitem__(self, rows: slice, /) -> Tensor:
        start, stop, _ = rows.indices(self.triangle.n)
        return self._moved(self.triangle.strip(start, stop).double(), rows)

    def diagonal(self) -> Tensor:
        """Return what is on the diagonal, (n,)."""
        found = self.triangle.diagonal().double()
        return (
            found if self.mean is None else found.addcmul_(self.mean[0], self.mean[0], value=1 / self.mean[1])
        )

    def whole(self) -> Tensor:
        """Return all rows."""
        return self._moved(self.triangle.whole(), slice(None))

    def _moved(self, found: Tensor, rows: slice) -> Tensor:
        if self.mean is not None:
            total, weight = self.mean
            found.addr_(total[rows], total, alpha=1 / weight)
        return found


def raw_of(found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the sums of a place in the form in which they are kept."""
    return found.raw if isinstance(found, Kept) else found


def _mean(name: str, found: Mapping[str, Tensor | Triangle]) -> tuple[Tensor, float] | None:
    """Return the sum of the rows (n,) and of their weights that belong to a moment; None if there are none."""
    statistic, at, variant = name.partition("@")
    total, weight = (found.get(f"{other}{at}{variant}") for other in MEAN)
    if statistic not in MOMENTS or not isinstance(total, Tensor) or not isinstance(weight, Tensor):
        return None
    rows = float(weight.sum())
    return (total.sum(0), rows) if rows > 0 else None
