"""What enters blocks of the dense model: kept on disk, and given back as training batches."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruning.calibration.driver import prediction
from pruning.data import NoisedBatches
from pruning.errors import PruningError
from pruning.files import remove
from pruning.models.outputs import tensors_in
from pruning.recording.trees import copied, leaves, on_device
from pruning.recovery.batches import Share, TrainingBatch, sample_order
from pruning.recovery.twins import Twin, reads_elsewhere

HELD_OUT = 8
"""One of so many calls is held out (at least one, if there are two): it judges whether a block got better."""

Tell = Callable[[Twin, tuple[Any, ...], Mapping[str, Any]], None]
"""Is told a block and what it is called with, by position and by name."""


@dataclass(frozen=True)
class Recorded:
    """Calls of one block, on disk.

    Attributes:
        files: One for each batch that was shown, or call of the block in it.
        read_elsewhere: Modules in the block that were also called while it did not run, by path in the block.
    """

    files: tuple[Path, ...]
    read_elsewhere: frozenset[str] = frozenset()

    @property
    def held_out(self) -> tuple[Path, ...]:
        """Those that judge; the only one there is, if need be."""
        return self.files[HELD_OUT - 1 :: HELD_OUT] or self.files[-1:]

    @property
    def shown(self) -> tuple[Path, ...]:
        """Those that are trained on; the only one there is, if need be."""
        judging = {*self.held_out}
        return tuple(file for file in self.files if file not in judging) or self.files


def input_bytes(teacher: nn.Module, blocks: Iterable[Twin], source: NoisedBatches) -> dict[Twin, int]:
    """Return about how many bytes all that enters each block has, by what the first batch brings.

    Raises:
        PruningError: If the source has no batch.
    """
    sizes = dict.fromkeys(blocks, 0)

    def count(twin: Twin, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        sizes[twin] += sum(tensor.nbytes for tensor in tensors_in([args, kwargs]))

    rows = _watch(teacher, sizes, replace(source, make=lambda: islice(source.make(), 1)), count)
    if not rows:
        raise PruningError(
            "recovery by blocks: nothing is shown to the dense model; give at least one sample"
        )
    return {twin: size * -(-max(source.rows, rows) // rows) for twin, size in sizes.items()}


def record(teacher: nn.Module, folders: Mapping[Twin, Path], source: NoisedBatches) -> dict[Twin, Recorded]:
    """Run the dense model on all batches, and write what enters each block to a folder of its own, made anew."""
    files: dict[Twin, list[Path]] = {twin: [] for twin in folders}
    for folder in folders.values():
        remove(folder)
        folder.mkdir(parents=True)

    def write(twin: Twin, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        path, written = folders[twin] / f"{len(files[twin]):06d}.pt", BytesIO()
        try:
            torch.save(copied({"args": args, "kwargs": kwargs}), written)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise PruningError(
                f"recovery by blocks: what block {twin.dense!r} is called with cannot be written to a file ({error}); "
                "use recover.method=whole"
            ) from error
        path.write_bytes(written.getbuffer())
        files[twin].append(path)

    with reads_elsewhere(teacher, folders) as read:
        _watch(teacher, folders, source, write)
    return {twin: Recorded(tuple(found), frozenset(read[twin])) for twin, found in files.items()}


@torch.no_grad()
def _watch(teacher: nn.Module, blocks: Iterable[Twin], source: NoisedBatches, tell: Tell) -> int:
    """Show the dense model all batches; `tell` is told what enters the blocks. Returns how many rows were shown."""

    def see(twin: Twin, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        tell(twin, args, kwargs)

    rows = 0
    with ExitStack() as stack:
        for twin in blocks:
            block = teacher.get_submodule(twin.dense)
            stack.callback(block.register_forward_pre_hook(partial(see, twin), with_kwargs=True).remove)
        for batch in source:
            prediction(teacher, batch)
            rows += len(batch.sample_ids)
    return rows


def recorded_call(path: Path, device: torch.device) -> dict[str, Any]:
    """Return the arguments of one call, ``args`` and ``kwargs``, in the types that it was made in."""
    return on_device(torch.load(path, weights_only=False), device)


@dataclass(frozen=True)
class InputSource:
    """Training batches of what enters a block.

    Attributes:
        files: Its recorded calls.
        share: What this process trains on.
    """

    files: Sequence[Path]
    share: Share

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)``, in order: recorded calls, epoch by epoch."""
        many, device = self.share.settings.gradient_accumulation, self.share.device
        for number in range(first_step * many, last_step * many):
            chosen = int(sample_order(len(self.files), number, 1, self.share.seed))
            call, one = recorded_call(self.files[chosen], device), torch.zeros(1, dtype=torch.long)
            own_types = {path for path, _ in leaves(call)}
            yield TrainingBatch(call, None, one.to(device), one, one.bool(), number, exact=own_types)
