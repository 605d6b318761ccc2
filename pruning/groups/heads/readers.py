"""Who reads the heads of an attention module: its own output layer, one of its block, or the attention beside it."""

from __future__ import annotations

from torch import nn

from pruning.groups.heads.parts import OUT, Parts
from pruning.groups.words import words


def reader_of(path: str, model: nn.Module, parts: Parts) -> tuple[str, dict[str, nn.Linear]] | str:
    """Return who reads the heads of the module at `path`, or why there are none of its own to go.

    Returns:
        The path of the attention module beside it that shares its heads, or ""; and the layers that read them, by path.
    """
    if parts.outs:
        lone = _hands_on(path, model)
        return f"its heads are those of {lone!r}" if lone else ("", below(path, parts.outs))
    block = path.rpartition(".")[0]
    around = model.get_submodule(block)
    for name, child in around.named_children():  # one layer reads the heads, and hidden channels after them
        if isinstance(child, nn.Linear) and words(name) & OUT and words(name) & {"out"}:
            return "", {f"{block}.{name}": child}
    if (beside := beside_of(path, model)) and isinstance(getattr(around, "gate", None), nn.Parameter):
        return beside, below(beside, Parts.of(model.get_submodule(beside)).outs)
    return "no layer was found that reads its heads"


def _hands_on(path: str, model: nn.Module) -> str:
    """Return the attention module without an output layer whose heads the one at `path` projects, if there is one."""
    block = path.rpartition(".")[0]
    if not block or not isinstance(getattr(model.get_submodule(block), "gate", None), nn.Parameter):
        return ""
    beside = beside_of(path, model)
    return beside if beside and not Parts.of(model.get_submodule(beside)).outs else ""


def beside_of(path: str, model: nn.Module) -> str:
    """Return the only other attention module of the block around `path`."""
    block = path.rpartition(".")[0]
    others = [
        f"{block}.{name}"
        for name, child in model.get_submodule(block).named_children()
        if f"{block}.{name}" != path and Parts.of(child)
    ]
    return others[0] if len(others) == 1 else ""


def below(path: str, layers: dict[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Return layers of the module at `path` by their paths in the model."""
    return {f"{path}.{name}": layer for name, layer in layers.items()}
