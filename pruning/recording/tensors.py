"""Tensors named by their content, in safetensors files: what repeats is stored once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.errors import PruningError
from pruning.recording.trees import DTYPES

KEY = re.compile(r"[0-9a-f]{24}")
"""What names of tensors look like."""


def content_key(tensor: Tensor) -> str:
    """Return the name of a tensor on the CPU: a hash of its type, its shape and its values."""
    flat = tensor.contiguous().flatten()
    values = flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)
    said = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    said.update(values.numpy().data)
    return said.hexdigest()[:24]


def on_cpu(tensor: Tensor) -> Tensor:
    """Return a tensor with memory of its own on the CPU, its entries side by side."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def check_numbers(tensor: Tensor) -> None:
    """Raise PruningError if NaN is in a tensor; infinity may be meant, in masks."""
    if tensor.is_floating_point() and bool(tensor.float().isnan().any()):
        raise PruningError(
            "NaN came up in the pipeline's own run; try by itself what it is asked, or another dtype"
        )


class Tensors:
    """Tensors that are going to be written, without those that lie on disk already.

    Args:
        known: Keys of what is on disk.

    Attributes:
        new: Tensors by key that are not on disk yet.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = set(known)
        self.new: dict[str, Tensor] = {}

    def keep(self, tensor: Tensor) -> str:
        """Keep a tensor and return its key; one of a type that no file holds, or with NaN in it, is a PruningError."""
        if str(tensor.dtype)[6:] not in DTYPES:
            raise PruningError(f"a tensor of type {tensor.dtype} cannot be kept on disk")
        whole = on_cpu(tensor)
        key = content_key(whole)
        if key not in self._known and key not in self.new:
            check_numbers(whole)
            self.new[key] = whole
        return key

    @property
    def bytes(self) -> int:
        """Bytes of the new tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.new.values())

    def write(self, path: Path) -> None:
        """Write the new tensors to a file, which then holds them."""
        save_file(self.new, path)
        self._known |= self.new.keys()
        self.new = {}


class TensorFiles:
    """Tensors by key in some files, opened when first asked and mapped, not read whole.

    Args:
        files: Which keys each file holds, as is written beside it.
    """

    def __init__(self, files: Mapping[Path, Iterable[str]]) -> None:
        self._place = {key: path for path, keys in files.items() for key in keys}
        self._open: dict[Path, Any] = {}
        self._outlines: dict[str, Tensor] = {}
        self._proven: set[str] = set()

    def outline(self, key: str) -> Tensor:
        """Return a tensor without its values, on the meta device, as `read` would."""
        if key not in self._outlines:
            self._outlines[key] = self._stored(key).to("meta")
        return self._outlines[key]

    def read(self, key: str) -> Tensor:
        """Return a tensor; one that is not there or was changed, or a file that cannot be read, is a PruningError.

        That it is what its name says is proven when it is first read.
        """
        tensor = self._stored(key)
        if key not in self._proven:
            if content_key(tensor) != key:
                raise PruningError(
                    f"{self._place[key]}: the tensor {key!r} was changed since it was recorded; record anew"
                )
            self._proven.add(key)
        return tensor

    def _stored(self, key: str) -> Tensor:
        path = self._place.get(key)
        if path is None:
            raise PruningError(f"the recording refers to the tensor {key!r}, which none of its files holds")
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, "pt")
            return self._open[path].get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise PruningError(f"{path} cannot be read ({error}); record anew") from error
