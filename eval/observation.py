"""What a subject shows of itself: tensors and facts, in memory or in a folder.

In a folder an observation is ``<name>.json``, its facts, and ``<name>.safetensors``, its tensors. A tensor may come as
`Rows`, batch by batch: then it goes into the file as it comes, and is read from there by rows, so that no more than a
batch of it is ever held.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """A tensor whose rows come in batches.

    Attributes:
        total: Rows in all.
        batches: Gives them once, in order; all of one type and, but for the number of rows, of one shape.
    """

    total: int
    batches: Iterable[Tensor]

    def held(self) -> Tensor:
        """Return the whole tensor."""
        return torch.cat(list(self))

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches; a ValueError tells of one that does not fit, and of too few or too many rows."""
        first: Tensor | None = None
        count = 0
        for batch in self.batches:
            first = batch if first is None else first
            if batch.dtype != first.dtype or batch.shape[1:] != first.shape[1:]:
                raise ValueError(
                    f"rows {count} and following are {batch.dtype} {tuple(batch.shape[1:])}, the ones before "
                    f"{first.dtype} {tuple(first.shape[1:])}; they must agree"
                )
            count += len(batch)
            yield batch
        if count != self.total:
            raise ValueError(f"{count} rows came, {self.total} were to come")


@dataclass(frozen=True)
class Observation:
    """One thing that a subject shows: tensors on the CPU and facts of JSON types, by name."""

    tensors: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def held(self) -> Observation:
        """Return the observation with all its tensors in memory."""
        tensors = {key: each.held() if isinstance(each, Rows) else each for key, each in self.tensors.items()}
        return Observation(tensors, self.facts)

    def save(self, folder: Path, name: str) -> None:
        """Write to `folder`, the facts last: where they are, the observation is whole."""
        if self.tensors:
            write_tensors(folder / f"{name}.safetensors", self.tensors)
        facts = json.dumps({"tensors": sorted(self.tensors), "facts": dict(self.facts)}, indent=1)
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
            file.write(batch.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _drawn(tensor: Tensor | Rows) -> tuple[Tensor, int, Iterator[Tensor]]:
    """Return the first batch of a tensor, its rows in all, and all its batches."""
    if isinstance(tensor, Tensor):
        return tensor, len(tensor) if tensor.ndim else 1, iter([tensor])
    batches = iter(tensor)
    first = next(batches)
    return first, tensor.total, itertools.chain([first], batches)


Seen = Mapping[str, Observation]
"""What one subject, or the data, showed so far, by observation."""
