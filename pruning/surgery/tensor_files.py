"""Safetensors files written tensor after tensor, byte for byte as the library writes them from memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

METADATA = {"format": "pt"}


@dataclass(frozen=True)
class InPieces:
    """A tensor that is written before it is whole.

    Attributes:
        shape: Of it.
        dtype: Of it.
        pieces: Yields it from the front to the back, in contiguous tensors of that type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return math.prod(self.shape) * self.dtype.itemsize

    def meta(self) -> Tensor:
        """Return a tensor like it without values."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def file_bytes(tensors: Mapping[str, InPieces]) -> int:
    """Return how large the file of these tensors is."""
    return len(_head(tensors)[0]) + sum(tensor.nbytes for tensor in tensors.values())


def write_in_pieces(path: Path, tensors: Mapping[str, InPieces]) -> Iterator[int]:
    """Write the file that ``safetensors.torch.save_file`` would, with `METADATA`; yield the bytes of each piece."""
    head, names = _head(tensors)
    with open(path, "wb") as file:
        file.write(head)
        for name in names:
            before = file.tell()
            for piece in tensors[name].pieces():
                file.write(piece.reshape(-1).view(torch.uint8).numpy().data)
                yield piece.nbytes
            assert file.tell() - before == tensors[name].nbytes, name


def _head(tensors: Mapping[str, InPieces]) -> tuple[bytes, list[str]]:
    """Return the head of a file and the order of its tensors.

    The library writes it for empty tensors of the same names and types, which is in the same order; here each entry
    gets its shape and its place.
    """
    empty = {name: torch.empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}
    entries: dict[str, Any] = json.loads(safetensors.torch.save(empty, METADATA)[8:])
    names = [name for name in entries if name != "__metadata__"]
    place = 0
    for name in names:
        tensor = tensors[name]
        entries[name] |= {
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, names
