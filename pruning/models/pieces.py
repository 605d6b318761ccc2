"""A model cut into pieces of weights, which are brought into memory together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class Piece:
    """Weights that are brought and released together.

    Attributes:
        path: Of the module whose call they are there for.
        module: That module.
        slots: Where the weights are: the dictionaries of modules, and their keys, with the weights' names.
        nbytes: Of the weights.
        parts: What the modules in it own: one may be called while the piece's own module is not.
    """

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module
        self.slots: list[tuple[dict[str, Any], str, str]] = []
        self.nbytes = 0
        self.parts: list[Piece] = []

    def take(self, path: str, module: nn.Module) -> None:
        """Add the weights that a module owns itself."""
        if module is not self.module:
            part = Piece(path, module)
            part.take(path, module)
            self.parts += [part] if part.slots else []
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    self.slots.append((store, name, f"{path}.{name}" if path else name))
                    self.nbytes += tensor.nbytes

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that are in the modules now, by name."""
        return {path: tensor for store, name, path in self.slots if (tensor := store.get(name)) is not None}


def pieces_of(model: nn.Module, most: int) -> list[Piece]:
    """Cut a model into pieces of at most `most` bytes, where modules allow it, in the order of its modules."""
    found: list[Piece] = []
    seen: set[nn.Module] = set()

    def cut(path: str, module: nn.Module, around: Piece) -> None:
        if module in seen:
            return
        can_be_called = type(module).forward is not nn.Module.forward  # a list cannot
        whole = can_be_called and weight_bytes(module) <= most
        if can_be_called:
            around = Piece(path, module)
            found.append(around)
        for name, part in module.named_modules(prefix=path) if whole else [(path, module)]:
            seen.add(part)
            around.take(name, part)
        for name, child in module.named_children():
            cut(f"{path}.{name}" if path else name, child, around)

    cut("", model, Piece("", model))
    return [piece for piece in found if piece.slots]


def called_paths(pieces: Iterable[Piece]) -> list[str]:
    """Return the paths of the model itself, of the modules of pieces, and of those in which they are."""
    parts = [piece.path.split(".") for piece in pieces]
    return sorted({""} | {".".join(path[: end + 1]) for path in parts for end in range(len(path))})


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of what a module and those in it hold, parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
