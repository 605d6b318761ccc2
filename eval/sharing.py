"""Batches of an observation that several processes make together, and that a killed one does not make again.

Each batch is a file, whole or not there, named after its rows. Which process makes a batch does not change it: batches
are the same for any number of processes, and a sample depends on its index alone. Who began the observation puts the
files together.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.observation import Observation, Rows

POLL_SECONDS = 0.2
ROWS = "rows"

Share = Callable[[list[int]], Sequence[int]]
"""Is told which batches are not there yet; returns which of them this process makes, others the rest."""


@dataclass(frozen=True)
class BatchFiles:
    """The files of the batches of one tensor.

    Attributes:
        rows: The tensor.
        folder: Where they are, or will be.
    """

    rows: Rows
    folder: Path

    def missing(self) -> list[int]:
        """Return which batches are not there; what cannot be read, as after a power cut, is not."""
        return [number for number, path in enumerate(self._paths()) if not _is_whole(path)]

    def make(self, numbers: Sequence[int]) -> None:
        """Make some batches; each is there as soon as it is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = self._paths()
        for number, batch in zip(numbers, self.rows.some(numbers), strict=True):
            temporary = paths[number].with_suffix(f".{os.getpid()}.tmp")
            save_file({ROWS: batch.contiguous()}, temporary)
            temporary.replace(paths[number])

    def joined(self) -> Rows:
        """Return the tensor, read from the files, waiting for those that other processes still make."""
        paths = self._paths()
        return Rows(self.rows.sizes, lambda numbers: (_waited_for(paths[number]) for number in numbers))

    def _paths(self) -> list[Path]:
        ends = [*itertools.accumulate(self.rows.sizes)]
        return [
            self.folder / f"{end - size:08d}-{end:08d}.safetensors"
            for size, end in zip(self.rows.sizes, ends, strict=True)
        ]


def made_together(found: Observation, folder: Path, share: Share) -> Observation:
    """Make what comes as `Rows` in an observation, batches in files under `folder`; return it, read from there."""
    tensors = {}
    for name, files in batch_files(found, folder).items():
        files.make(share(files.missing()))
        tensors[name] = files.joined()
    return replace(found, tensors={**found.tensors, **tensors})


def help_to_make(found: Observation, folder: Path, numbers: Sequence[int]) -> None:
    """Make some batches of an observation that another process began with `made_together`."""
    for files in batch_files(found, folder).values():
        files.make(numbers)


def batch_files(found: Observation, folder: Path) -> dict[str, BatchFiles]:
    """Return the files of what comes as `Rows`, which is one tensor at most, by its name."""
    named = {name: BatchFiles(each, folder) for name, each in found.tensors.items() if isinstance(each, Rows)}
    assert len(named) <= 1, sorted(named)  # their files would be told apart no more
    return named


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return ROWS in file.keys()  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError):
        return False


def _waited_for(path: Path) -> Tensor:
    while not path.exists():
        time.sleep(POLL_SECONDS)
    return load_file(path)[ROWS]
