"""Whole residual blocks that can become the identity: input and output have the same shape.

No class is named here: the source of a block's ``forward`` says whether it hands on its input plus an update that is
zero with zero weights, and the source of the code around it says how it is called and whether anything of it is read
from outside; such a block is not a group. Where the stock config counts the blocks of a list (``num_layers``) and
nothing depends on their positions, a removed block is deleted from the list, else an identity takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from pruning.groups.base import handler, kind
from pruning.groups.reading.callers import Callers, arguments_of, callers_in, enclosing
from pruning.groups.reading.counts import config_field
from pruning.groups.reading.residual import first_channels, residual
from pruning.groups.reading.structure import forward_names, may_be_block, signatures_of
from pruning.groups.reading.values import Value, the_atom
from pruning.groups.stages import DOWN, MIDDLE, channels_behind, inner_stages
from pruning.models import stock_model
from pruning.removal import BlockRemoval
from pruning.types import PRUNING_KEY, PrunableGroup

_FOUND: WeakKeyDictionary[nn.Module, Blocks] = WeakKeyDictionary()
_READ: dict[Any, Any] = {}
"""What was read of a module's source, by its structure: blocks that are built alike are read once."""
_ZEROS: dict[Any, Value] = {}
"""Modules whose output is zero with zero weights, by structure and arguments."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model by path, and why other modules that look like blocks are none."""

    removals: dict[str, BlockRemoval]
    why_not: dict[str, str]


BLOCKS = kind("blocks", "Whole residual blocks, which become the identity.")


@handler("blocks", BLOCKS)
def blocks(path: str, module: nn.Module, model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield `module` itself if it is a residual block that can become the identity."""
    if not path or model not in _FOUND:
        _FOUND[model] = blocks_of(model)
    removal = _FOUND[model].removals.get(path)
    if removal is not None:
        yield PrunableGroup(f"{path}:blocks", path, BLOCKS, num_units=1, unit_size=1, removal=removal)


def blocks_of(model: nn.Module) -> Blocks:
    """Find the residual blocks of a model, and say of the other modules in lists why they are none."""
    signatures = signatures_of(model)
    if len(_READ) > 4096:
        _READ.clear()
        _ZEROS.clear()
    callers = callers_in(model, signatures, _READ)
    removals: dict[str, BlockRemoval] = {}
    why_not: dict[str, str] = {}
    for path, module in model.named_modules():
        if not path or not may_be_block(module):
            continue
        found = _removal(path, module, model, callers, signatures)
        if isinstance(found, BlockRemoval):
            removals[path] = found
        else:
            why_not[path] = found
    for path in [path for path in removals if _alone(path, removals)]:
        del removals[path]
        why_not[path] = "it is the one block of a module that is a block itself"
    pruned = PRUNING_KEY in getattr(model, "config", {})
    built = signatures_of(stock_model(model) or model) if pruned else signatures
    counted = {path: _counted(path, model, built) for path in removals}
    removals = {path: replace(removal, config_field=counted[path]) for path, removal in removals.items()}
    stage = inner_stages(model, removals, lambda path: _concatenated(path, model, callers))
    if stage is not None:
        removals[stage[0]] = stage[1]
    return Blocks(removals, why_not)


def _removal(
    path: str, module: nn.Module, model: nn.Module, callers: Callers, signatures: dict[str, int]
) -> BlockRemoval | str:
    calls = callers.of(path)
    if not calls:
        return "no call of it was found in the model's code"
    arguments = arguments_of(forward_names(module), calls)
    given = (signatures[path], tuple(sorted((name, repr(value)) for name, value in arguments.items())))
    if ("residual", *given) not in _READ:
        by_id = {id(m): signatures[f"{path}.{p}" if p else path] for p, m in module.named_modules()}
        _READ["residual", *given] = residual(module, arguments, by_id, _ZEROS)
    found = _READ["residual", *given]
    if isinstance(found, str) and _concatenated(path, model, callers):
        if ("channels", *given) not in _READ:
            _READ["channels", *given] = first_channels(module, arguments)
        narrowed = _READ["channels", *given]
        if narrowed is not None and narrowed.channels == _channels_before(path, model):
            found = narrowed
    if isinstance(found, str):
        return found
    shown = _shown(path, model, callers)
    return shown if isinstance(shown, str) else replace(found, shown=shown)


def _shown(path: str, model: nn.Module, callers: Callers) -> tuple[str, ...] | str:
    """Return what code outside the block reads of it and the identity can show, or why it cannot.

    It can show objects without weights, such as the processor of an attention, but nothing that is run.
    """
    shown = []
    for read, readers in callers.reads.items():
        if read != path and not read.startswith(path + "."):
            continue
        for reader, names in readers.items():
            if path in enclosing(reader):
                continue
            for name, how in names.items():
                called = any(who == reader for who, _ in callers.calls.get(f"{read}.{name}", ()))
                if how == "inner" or called:
                    return f"{type(model.get_submodule(reader)).__name__} reads {name!r} of {read}"
                shown.append(f"{read}.{name}"[len(path) + 1 :])
    return tuple(sorted(set(shown)))


def _concatenated(path: str, model: nn.Module, callers: Callers) -> bool:
    """Tell whether every caller concatenates channels to the stream that is the block's first argument."""
    name = next(iter(forward_names(model.get_submodule(path))), "")  # an identity names none
    for call in callers.of(path):
        value = call.args[0] if call.args else call.kwargs.get(name)
        atom = the_atom(value) if value is not None else None
        if atom is None or atom[0] != "cat" or atom[1] != 1:
            return False
    return True


def _channels_before(path: str, model: nn.Module) -> int | None:
    """Return the channels of the stream that reaches an item of a list: those behind the item before it.

    Before the first item of an up stage these are the channels behind the stage before; before the first stage behind
    the middle or, without one, behind the last stage down.
    """
    parent, _, index = path.rpartition(".")
    if not index.isdigit():
        return None
    if int(index):
        return channels_behind(model.get_submodule(f"{parent}.{int(index) - 1}"))
    stage, _, name = parent.rpartition(".")
    stages, _, number = stage.rpartition(".")
    if not number.isdigit():
        return None
    down = getattr(model, DOWN, None)
    last = len(down) - 1 if isinstance(down, nn.ModuleList) else -1
    around = [f"{stages}.{int(number) - 1}"] if int(number) else [MIDDLE, f"{DOWN}.{last}"]
    for stage in around:
        try:
            items = model.get_submodule(f"{stage}.{name}")
        except AttributeError:
            continue
        if isinstance(items, nn.ModuleList) and len(items):
            return channels_behind(items[len(items) - 1])
    return None


def _alone(path: str, removals: dict[str, BlockRemoval]) -> bool:
    """Tell whether a block is all that the block around it has: one of the two is enough."""
    parent, _, index = path.rpartition(".")
    around = parent.rpartition(".")[0]
    if not index.isdigit() or around not in removals:
        return False
    inner = [other for other in removals if other.startswith(around + ".") and not other.startswith(path)]
    return not inner


def _counted(path: str, model: nn.Module, built: dict[str, int]) -> str | None:
    """Return the entry that counts the list of a block; `built` are the signatures of the model as it is built."""
    parent, _, index = path.rpartition(".")
    if not index.isdigit() or not isinstance(model.get_submodule(parent), nn.ModuleList):
        return None
    siblings: Any = model.get_submodule(parent)
    alike = {built.get(f"{parent}.{k}") for k in range(len(siblings))}
    key = ("count", built[""], parent)
    if key not in _READ:
        _READ[key] = config_field(model, parent, len(alike) == 1)
    return _READ[key]
