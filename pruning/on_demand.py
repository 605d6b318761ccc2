"""Tensors by name that are read or made each time they are asked for, so that nobody holds them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from safetensors import safe_open
from torch import Tensor

P = TypeVar("P")


class Rows(Protocol):
    """A matrix that is read some rows at a time; a tensor is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ...

    def __getitem__(self, rows: slice, /) -> Tensor:
        """Return some rows, next to each other."""
        ...

    def diagonal(self) -> Tensor:
        """Return what is on the diagonal."""
        ...


class OnDemand(Mapping[str, Tensor], Generic[P]):
    """Tensors by name, of which only the places are held.

    Args:
        places: Where the tensor of each name is; what is added later is there, too.
        read: Returns the tensor of a place.
        by_rows: Returns it as something whose rows are read; None: as `read`.
    """

    def __init__(
        self, places: Mapping[str, P], read: Callable[[P], Tensor], by_rows: Callable[[P], Rows] | None = None
    ) -> None:
        self._places, self._read, self._by_rows = places, read, by_rows or read

    def by_rows(self, name: str) -> Rows:
        """Return the tensor of a name as something whose rows are read."""
        return self._by_rows(self._places[name])

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self._places[name])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def first_of(*several: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of several mappings; of those of one name that of the first."""
    homes = {name: (found, name) for found in reversed(several) for name in found}
    return OnDemand(homes, lambda home: home[0][home[1]], lambda home: by_rows(*home))


def by_rows(found: Mapping[str, Tensor], name: str) -> Rows:
    """Return a tensor of a mapping as something whose rows are read: in the mapping's own way, if it has one."""
    own: Callable[[str], Rows] | None = getattr(found, "by_rows", None)
    return found[name] if own is None else own(name)


def stored_at(place: tuple[Path, str]) -> Tensor:
    """Return the tensor of a name in a safetensors file."""
    path, name = place
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
