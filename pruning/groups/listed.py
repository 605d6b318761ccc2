"""The blocks of which a model is built, as far as they can be run by themselves.

Three things are called blocks. These here are parts of a model that run code of their own and do not lie in each other:
one may run again (`pruning.calibration.checkpointing`), or be trained alone (`pruning.recovery.blocks`). Those that may
be removed (`pruning.groups.blocks`) must hand on their input too. What is brought into memory together is cut by size,
and called a piece (`pruning.models.pieces`).
"""

from __future__ import annotations

from torch import nn

from pruning.groups.experts import mixtures
from pruning.groups.reading.structure import may_be_block


def listed_blocks(model: nn.Module) -> list[str]:
    """Return the paths of a model's blocks, none of which lies in another, in module order.

    They are the items of lists that run code of their own on at least two weights; of those inside each other the
    innermost, but for one that is the only one in the block around it. Experts are parts of their layer's block.
    """
    layers = {mixture.path for mixture in mixtures(model)}

    def walk(path: str, module: nn.Module, *, listed: bool) -> list[str]:
        is_list = isinstance(module, (nn.ModuleList, nn.Sequential))
        inner: list[str] = []
        if path not in layers:
            for name, child in module.named_children():
                inner += walk(f"{path}.{name}" if path else name, child, listed=is_list)
        return [path] if listed and len(inner) < 2 and may_be_block(module) else inner

    return walk("", model, listed=False)
