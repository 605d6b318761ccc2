"""What a subject shows of itself: tensors and facts, in memory or in a folder.

In a folder an observation is ``<name>.json``, its facts, and ``<name>.safetensors``, its tensors. A tensor may come as
`Rows`, batch by batch: then it goes into the file as it comes, and is read from there by rows, so that no more than a
batch of it is ever held. Several processes may make the batches together (`eval.sharing`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""What a type is called in the header of a safetensors file."""


@dataclass(frozen=True)
class Rows:
    """A tensor whose rows come in batches, each of which can be made by itself.

    Attributes:
        sizes: Rows of each batch, none of them 0.
        make: Maps numbers of batches, ascending, to these batches, in order; all are of one type and, but for the
            number of rows, of one shape. What is in a batch does not depend on which others are made.
    """

    sizes: Sequence[int]
    make: Callable[[Sequence[int]], Iterable[Tensor]]

    @property
    def total(self) -> int:
        """Rows in all."""
        return sum(self.sizes)

    def held(self) -> Tensor:
        """Return the whole tensor."""
        return torch.cat(list(self))

    def __iter__(self) -> Iterator[Tensor]:
        """Make all batches; a ValueError tells of one that does not fit."""
        return self.some(range(len(self.sizes)))

    def some(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """Make the batches of these numbers; a ValueError tells of one that does not fit."""
        first: Tensor | None = None
        for number, batch in zip(numbers, self.make(numbers), strict=True):
            first = batch if first is None else first
            if batch.dtype != first.dtype or batch.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"{self._place(number)} are {batch.dtype} {tuple(batch.shape[1:])}, the ones before {first.dtype} "
                    f"{tuple(first.shape[1:])}; they must agree"
                )
            if len(batch) != self.sizes[number]:
                raise ValueError(
                    f"{self._place(number)}: {len(batch)} came, {self.sizes[number]} were to come"
                )
            yield batch

    def _place(self, number: int) -> str:
        return f"rows {sum(self.sizes[:number])} and following"


def parts_of(count: int, size: int) -> list[range]:
    """Return the rows 0 to `count` in batches of `size`, the last one of what is left."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def filled(count: int, parts: Iterable[Tensor]) -> Tensor:
    """Return values that come in parts, one a row, as one float64 tensor ``(count,)``, which is there before they come.

    Kept by themselves, small tensors come to lie between large ones that go, and the heap keeps what is between them:
    600 MB for the pairs of 50,000 images.
    """
    found, start = torch.empty(count, dtype=torch.float64), 0
    for part in parts:
        found[start : start + len(part)] = part
        start += len(part)
    assert start == count, (start, count)
    return found


@dataclass(frozen=True)
class Observation:
    """One thing that a subject shows.

    Attributes:
        tensors: On the CPU, by name.
        facts: Of JSON types, by name.
        columns: Further tensors that come together, some rows of each at a time; how many shows when they end.
    """

    tensors: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Iterable[Mapping[str, Tensor]] = ()

    def held(self) -> Observation:
        """Return the observation with all its tensors in memory."""
        tensors = {key: each.held() if isinstance(each, Rows) else each for key, each in self.tensors.items()}
        parts = list(self.columns)
        for name in parts[0] if parts else ():
            tensors[name] = torch.cat([part[name] for part in parts])
        return Observation(tensors, self.facts)

    def save(self, folder: Path, name: str) -> None:
        """Write to `folder`, the facts last: where they are, the observation is whole."""
        with _spooled(self.columns, folder) as columns:
            tensors = {**self.tensors, **columns}
            if tensors:
                write_tensors(folder / f"{name}.safetensors", tensors)
        facts = json.dumps({"tensors": sorted(tensors), "facts": dict(self.facts)}, indent=1)
        (folder / f"{name}.json").write_text(facts + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> Observation:
        """Read what `save` wrote; tensors are mapped from the disk, and read where they are looked at.

        Raises:
            ValueError: If it is not there or cannot be read.
        """
        try:
            data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / f"{name}.safetensors") if data["tensors"] else {}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{folder}: the observation {name!r} cannot be read ({error}); observe it anew"
            ) from error
        return cls(tensors, data["facts"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Rows]) -> None:
    """Write a safetensors file batch by batch; a batch of each `Rows` is drawn first, for its type and shape."""
    header: dict[str, Any] = {}
    parts: list[Iterator[Tensor]] = []
    end = 0
    # Widest types first, so that every tensor begins at a multiple of its item's size.
    drawn = {name: _drawn(each) for name, each in tensors.items()}
    for name, (first, total, batches) in sorted(drawn.items(), key=lambda item: -item[1][0].itemsize):
        shape = [total, *first.shape[1:]] if first.ndim else []
        begin, end = end, end + first.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": DTYPES[first.dtype], "shape": shape, "data_offsets": [begin, end]}
        parts.append(batches)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for batch in itertools.chain.from_iterable(parts):
            file.write(_bytes_of(batch))


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _spooled(columns: Iterable[Mapping[str, Tensor]], folder: Path) -> Iterator[dict[str, Rows]]:
    """Write columns as they come into files without a name in `folder`; yield them as rows that are read from there."""
    files: dict[str, IO[bytes]] = {}
    kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}
    sizes: list[int] = []
    with ExitStack() as stack:
        for part in columns:
            if files and part.keys() != files.keys():
                raise ValueError(
                    f"batch {len(sizes)} has the columns {sorted(part)}, the ones before {sorted(files)}"
                )
            sizes.append(len(next(iter(part.values()))))
            for name, tensor in part.items():
                if name not in files:
                    files[name] = stack.enter_context(TemporaryFile(dir=folder))
                    kinds[name] = tensor.dtype, tensor.shape[1:]
                if (tensor.dtype, tensor.shape[1:]) != kinds[name] or len(tensor) != sizes[-1]:
                    raise ValueError(
                        f"{name} is {tensor.dtype} {tuple(tensor.shape)} in batch {len(sizes) - 1}; it must be "
                        f"{kinds[name][0]} {(sizes[-1], *kinds[name][1])} as before"
                    )
                files[name].write(_bytes_of(tensor))
        yield {name: Rows(sizes, partial(_read_back, files[name], *kinds[name], sizes)) for name in files}


def _read_back(
    file: IO[bytes], dtype: torch.dtype, shape: torch.Size, sizes: Sequence[int], numbers: Sequence[int]
) -> Iterator[Tensor]:
    row, starts = dtype.itemsize * shape.numel(), [0, *itertools.accumulate(sizes)]
    for number in numbers:
        file.seek(starts[number] * row)
        found = torch.frombuffer(bytearray(file.read(sizes[number] * row)), dtype=dtype)
        yield found.reshape(sizes[number], *shape)


def _drawn(tensor: Tensor | Rows) -> tuple[Tensor, int, Iterator[Tensor]]:
    """Return the first batch of a tensor, its rows in all, and all its batches."""
    if isinstance(tensor, Tensor):
        return tensor, len(tensor) if tensor.ndim else 1, iter([tensor])
    batches = iter(tensor)
    first = next(batches)
    return first, tensor.total, itertools.chain([first], batches)


Seen = Mapping[str, Observation]
"""What one subject, or the data, showed so far, by observation."""
