"""Which blocks of a slim model can be trained by themselves: what each was, and what of it is read elsewhere, too."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from torch import nn

from pruning.groups import find_groups
from pruning.groups.listed import listed_blocks
from pruning.groups.reading.callers import enclosing
from pruning.surgery.cut import apply_with
from pruning.surgery.origins import Origins
from pruning.surgery.shared import owners_of
from pruning.types import PrunableGroup, PruningPlan, inside, slices_of


@dataclass(frozen=True)
class Twin:
    """A block of the slim model that lost something, and the dense one that it was.

    Attributes:
        slim: Path in the slim model.
        dense: Path in the dense model.
    """

    slim: str
    dense: str


def twins(dense: nn.Module, plan: PruningPlan) -> list[Twin]:
    """Return the blocks of a slim model that are not as they were, and what each was in the dense model.

    Args:
        dense: The dense model, on the meta device or not; it is not changed.
        plan: What the slim model was cut by.
    """
    return _found(dense, plan, unchanged=False)


def pairs(dense: nn.Module, plan: PruningPlan) -> list[Twin]:
    """Return all blocks of a slim model, and what each was in the dense model; as for `twins`."""
    return _found(dense, plan, unchanged=True)


def _found(dense: nn.Module, plan: PruningPlan, *, unchanged: bool) -> list[Twin]:
    slim = copy.deepcopy(dense).to("meta")
    groups = find_groups(slim)
    blocks = _closed(slim, listed_blocks(slim), plan.completed(groups).cuts(groups))
    shapes = {name: tensor.shape for name, tensor in slim.state_dict().items()}
    origins = Origins(slim, {}, plan)
    origins.take_ranks()
    apply_with(origins, slim, plan, groups)
    found: dict[str, Twin] = {}
    for name, tensor in slim.state_dict(keep_vars=True).items():
        source = origins.of(tensor).name
        dense_path = next((path for path in blocks if source.startswith(f"{path}.")), None)
        if dense_path is None or (shapes.get(source) == tensor.shape and not unchanged):
            continue
        rest = source.removeprefix(dense_path)
        if name.endswith(rest):
            found.setdefault(dense_path, Twin(name.removesuffix(rest), dense_path))
    return [found[path] for path in blocks if path in found]


def _closed(model: nn.Module, blocks: list[str], cut: Iterable[PrunableGroup]) -> list[str]:
    """Return blocks none of which shares a group that is cut with what is around it: some are parts of others then.

    So what enters and leaves a block is as wide as before.
    """
    for group in cut:
        owners = [part.path.rpartition(".")[0] for part in slices_of(group)]
        touched = [path for path in blocks if any(inside(owner, path) for owner in owners)]
        if not touched or all(inside(owner, touched[0]) for owner in owners):
            continue
        whole = next((path for path in enclosing(owners[0]) if _holds(model, path, owners)), "")
        where = blocks.index(touched[0])
        left = [path for path in blocks[where:] if path not in touched and not inside(path, whole)]
        blocks = [*blocks[:where], *([whole] if whole else []), *left]
    return blocks


def _holds(model: nn.Module, path: str, owners: Iterable[str]) -> bool:
    """Tell whether a module can be called, and all owners lie in it."""
    can_be_called = type(model.get_submodule(path)).forward is not nn.Module.forward
    return can_be_called and all(inside(owner, path) for owner in owners)


def served_elsewhere(student: nn.Module, blocks: Iterable[Twin]) -> dict[Twin, set[str]]:
    """Return the modules in each block that stand for others outside of it, too, by path in the block."""
    pairs = owners_of(student).items()
    return {
        twin: {
            owner.removeprefix(f"{twin.slim}.")
            for path, owner in pairs
            if inside(owner, twin.slim) and not inside(path, twin.slim)
        }
        for twin in blocks
    }


@contextmanager
def reads_elsewhere(teacher: nn.Module, blocks: Iterable[Twin]) -> Iterator[dict[Twin, set[str]]]:
    """Find the modules in each block that the model also calls while the block does not run, by path in the block.

    Such as the embedder of DiT's first block, which the output is conditioned by: what the block would win by changing
    it is lost there.
    """
    found: dict[Twin, set[str]] = {twin: set() for twin in blocks}
    running = Counter[Twin]()

    def run(twin: Twin, change: int, *_: object) -> None:
        running[twin] += change

    def see(twin: Twin, path: str, *_: object) -> None:
        if not running[twin]:
            found[twin].add(path)

    with ExitStack() as stack:
        for twin in found:
            block = teacher.get_submodule(twin.dense)
            stack.callback(block.register_forward_pre_hook(partial(run, twin, 1)).remove)
            stack.callback(block.register_forward_hook(partial(run, twin, -1), always_call=True).remove)
            for path, part in block.named_modules():
                if path:
                    stack.callback(part.register_forward_pre_hook(partial(see, twin, path)).remove)
        yield found
