"""Tensors by name that are read or made each time they are asked for, so that nobody holds them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.files import file_name, write_errors, written_whole

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


class TensorFiles(MutableMapping[str, Tensor]):
    """Tensors by name, each a file in a folder: there from when it is assigned, whole or not at all.

    Args:
        folder: Made with the first tensor; those that lie there are there.
        what: What they are, for errors.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder, self._what = folder, what
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def __getitem__(self, name: str) -> Tensor:
        return stored_at((self._files[name], name))

    def __setitem__(self, name: str, value: Tensor) -> None:
        path = self._folder / f"{file_name(name)}.safetensors"
        with write_errors(self._what, self._folder, "Nothing else has been changed"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                save_file({name: value.detach().cpu().contiguous()}, temporary)
        self._files[name] = path

    def __delitem__(self, name: str) -> None:
        self._files.pop(name).unlink()

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


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
