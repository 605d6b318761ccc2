"""Changed weights of a model, kept on disk until the model is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pruning.files import file_name, write_errors, written_whole
from pruning.on_demand import OnDemand, stored_at

ENTRY = "weight"
"""Name of a weight in its file."""


class Changes(MutableMapping[str, Tensor]):
    """Weights by name: those of a model, and in the place of some what they were changed to, each a file.

    Args:
        weights: The model's own.
        folder: Where changed ones lie; what an earlier attempt left there is removed, for it may be half done.
    """

    def __init__(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        self._weights, self._folder = weights, folder
        self._places: dict[str, tuple[Path, str]] = {}
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def changed(self) -> Mapping[str, Tensor]:
        """The changed ones alone, read when they are asked for."""
        return OnDemand(self._places, stored_at)

    def __getitem__(self, name: str) -> Tensor:
        return self.changed[name] if name in self._places else self._weights[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        path = self._folder / f"{file_name(name)}.safetensors"
        with write_errors("changed weights", self._folder, "The model itself is not touched"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                save_file({ENTRY: value.detach().cpu().contiguous()}, temporary)
        self._places[name] = path, ENTRY

    def __delitem__(self, name: str) -> None:
        self._places.pop(name)[0].unlink()

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._weights

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        yield from (name for name in self._places if name not in self._weights)

    def __len__(self) -> int:
        return sum(1 for _ in self)
