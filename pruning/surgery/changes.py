"""Changed weights of a model, kept on disk until the model is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from torch import Tensor

from pruning.errors import PruningError
from pruning.files import foreign_to_tensors
from pruning.on_demand import TensorFiles


class Changes(MutableMapping[str, Tensor]):
    """Weights by name: those of a model, and in the place of some what they were changed to, each a file.

    Args:
        weights: The model's own.
        folder: Where changed ones lie; what an earlier attempt left there is removed, for it may be half done.

    Attributes:
        changed: The changed ones alone, read when they are asked for.

    Raises:
        PruningError: If the folder holds something else.
    """

    def __init__(self, weights: Mapping[str, Tensor], folder: str | Path) -> None:
        folder = Path(folder)
        _clear(folder)
        self._weights, self.changed = weights, TensorFiles(folder, "changed weights")

    def __getitem__(self, name: str) -> Tensor:
        return self.changed[name] if name in self.changed else self._weights[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.changed[name] = value

    def __delitem__(self, name: str) -> None:
        del self.changed[name]

    def __contains__(self, name: object) -> bool:
        return name in self.changed or name in self._weights

    def __iter__(self) -> Iterator[str]:
        yield from self._weights
        yield from (name for name in self.changed if name not in self._weights)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left, and nothing that is not of its kind."""
    if not folder.exists():
        return
    if others := foreign_to_tensors(folder):
        raise PruningError(
            f"changed weights cannot be kept in {folder}: it holds {others[0]!r}, which would be removed; name a "
            "folder of their own"
        )
    shutil.rmtree(folder, ignore_errors=True)
