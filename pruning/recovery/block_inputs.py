"""What enters the blocks of a dense model, kept on disk, and training batches of it."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from pruning.calibration.driver import prediction
from pruning.data import NoisedBatches
from pruning.data.batches import Path as Where
from pruning.errors import PruningError
from pruning.files import remove
from pruning.models.outputs import tensors_in
from pruning.recovery.batches import Share, TrainingBatch, sample_order

INPUTS = "inputs"

HELD_OUT = 8
"""One of so many calls is held out (at least one, if there are two): it judges whether a block got better."""

DISK = 0.25
"""Share of the free disk that inputs of blocks may take at a time; more blocks take more runs of the dense model."""


@dataclass(frozen=True)
class Twin:
    """A block of the slim model that lost something, and the dense one that it was.

    Attributes:
        slim: Path in the slim model.
        dense: Path in the dense model.
    """

    slim: str
    dense: str


def place_of(folder: Path, twin: Twin) -> Path:
    """Return where what belongs to a block lies meanwhile."""
    return folder / quote(twin.slim, safe="")


@dataclass(frozen=True)
class Recorded:
    """Calls of one block, on disk.

    Attributes:
        files: One for each batch that was shown, or call of the block in it.
    """

    files: tuple[Path, ...]

    @property
    def held_out(self) -> tuple[Path, ...]:
        """Those that judge."""
        return self.files[HELD_OUT - 1 :: HELD_OUT] or self.files[1:][-1:]

    @property
    def shown(self) -> tuple[Path, ...]:
        """Those that are trained on."""
        return tuple(file for file in self.files if file not in self.held_out)


def chunks(
    teacher: nn.Module, blocks: Sequence[Twin], source: NoisedBatches, folder: Path
) -> Iterator[list[Twin]]:
    """Yield the blocks, as many at a time as their inputs have room on the disk."""
    if not blocks:
        return
    sizes = dict.fromkeys(blocks, 0)

    def count(twin: Twin, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        sizes[twin] += sum(tensor.nbytes for tensor in tensors_in([args, kwargs]))

    rows = _watch(teacher, blocks, replace(source, make=lambda: islice(source.make(), 1)), count)
    if not rows:
        raise PruningError(
            "recovery by blocks: nothing is shown to the dense model; give at least one sample"
        )
    for twin in blocks:
        sizes[twin] *= -(-max(source.rows, rows) // rows)
    room, some, taken = DISK * shutil.disk_usage(folder).free, list[Twin](), 0.0
    for twin in blocks:
        if some and taken + sizes[twin] > room:
            yield some
            some, taken = [], 0.0
        some.append(twin)
        taken += sizes[twin]
    yield some


def record(
    teacher: nn.Module, blocks: Sequence[Twin], source: NoisedBatches, folder: Path
) -> dict[Twin, Recorded]:
    """Run the dense model on all batches, and write what enters the blocks."""
    files: dict[Twin, list[Path]] = {twin: [] for twin in blocks}
    for twin in blocks:
        remove(place_of(folder, twin) / INPUTS)
        (place_of(folder, twin) / INPUTS).mkdir(parents=True)

    def write(twin: Twin, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        path = place_of(folder, twin) / INPUTS / f"{len(files[twin]):06d}.pt"
        torch.save({"args": args, "kwargs": dict(kwargs)}, path)
        files[twin].append(path)

    _watch(teacher, blocks, source, write)
    return {twin: Recorded(tuple(found)) for twin, found in files.items()}


@torch.no_grad()
def _watch(teacher: nn.Module, blocks: Sequence[Twin], source: NoisedBatches, tell: Any) -> int:
    """Show the dense model all batches; `tell` is told what enters the blocks. Returns how many rows were shown."""
    rows = 0
    with ExitStack() as stack:
        for twin in blocks:

            def see(module: nn.Module, args: Any, kwargs: Any, twin: Twin = twin) -> None:
                tell(twin, args, kwargs)

            block = teacher.get_submodule(twin.dense)
            stack.callback(block.register_forward_pre_hook(see, with_kwargs=True).remove)
        for batch in source:
            prediction(teacher, batch)
            rows += len(batch.sample_ids)
    return rows


@dataclass(frozen=True)
class InputSource:
    """Training batches of what enters a block.

    Attributes:
        files: Its recorded calls.
        dtype: Type of the dense block's weights: what has another one keeps it in the dense block's call.
        share: What this process trains on.
    """

    files: Sequence[Path]
    dtype: torch.dtype
    share: Share

    def batches(self, first_step: int, last_step: int) -> Generator[TrainingBatch, None, None]:
        """Yield the micro-batches of steps ``[first_step, last_step)``, in order: recorded calls, epoch by epoch."""
        many = self.share.settings.gradient_accumulation
        for number in range(first_step * many, last_step * many):
            chosen = int(sample_order(len(self.files), number, 1, self.share.seed))
            yield self.batch(self.files[chosen], number)

    def batch(self, path: Path, position: int = 0) -> TrainingBatch:
        """Return one recorded call, halves as float32."""
        call, exact = {}, list[Where]()
        for name, value in torch.load(path, weights_only=False).items():
            call[name] = _taken(value, self.share.device, self.dtype, (name,), exact)
        one = torch.zeros(1, dtype=torch.long)
        return TrainingBatch(call, None, one.to(self.share.device), one, one.bool(), position, exact=exact)


def _taken(value: Any, device: torch.device, dtype: torch.dtype, path: Where, exact: list[Where]) -> Any:
    """Return arguments on a device, halves as float32; adds to `exact` where those are that are not of `dtype`."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dtype != dtype:
            exact.append(path)
        halved = value.dtype in (torch.float16, torch.bfloat16)
        return value.to(device, torch.float32) if halved else value.to(device)
    if isinstance(value, Mapping):
        return {name: _taken(entry, device, dtype, (*path, name), exact) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_taken(entry, device, dtype, (*path, k), exact) for k, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    return value
