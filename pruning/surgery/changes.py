"""Changed weights of a model, kept on disk until the model is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.files import file_name, write_errors, written_whole

ENTRY = "weight"


class Changes(MutableMapping[str, Tensor]):
    """Weights by name: those of a model, and in the place of some what they were changed to, each a file.

    Args:
        weights: The model's own.
        folder: Where changed ones lie; what an earlier attempt left there is removed, for it may be half done.
    """

    def __init__(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        self._weights, self._folder = weights, folder
        self._files: dict[str, Path] = {}
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def changed(self) -> Mapping[str, Tensor]:
        """The changed ones alone, read when they are asked for."""
        return _Files(self._files)

    def __getitem__(self, name: str) -> Tensor:
        return self.changed[name] if name in self._files else self._weights[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        path = self._folder / f"{file_name(name)}.safetensors"
        with write_errors("changed weights", self._folder, "The model itself is not touched"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                save_file({ENTRY: value.detach().cpu().contiguous()}, temporary)
        self._files[name] = path

    def __delitem__(self, name: str) -> None:
        self._files.pop(name).unlink()

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._weights

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        yield from (name for name in self._files if name not in self._weights)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Files(Mapping[str, Tensor]):
    """Weights by name, each in a file of its own."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(ENTRY)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
