"""Discovery: walk the module tree and ask every handler what it finds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.registry import Registry, names_of, unknown
from pruning.types import PRUNING_KEY, ParamSlice, PrunableGroup, config_of

logger = logging.getLogger(__name__)

Find = Callable[[str, nn.Module, nn.Module], Iterable[PrunableGroup]]


@dataclass(frozen=True)
class Handler:
    """A function ``(path, module, model) -> groups that this module owns``, and the kinds of groups it may find."""

    find: Find
    kinds: frozenset[str]


HANDLERS: Registry[Handler] = Registry("group handler")

KINDS: Registry[str] = Registry("group kind")
"""What the units of each kind of group are, in words."""


def kind(name: str, words: str) -> str:
    """Register a kind of group, and return its name; `words` say what its units are."""
    return KINDS.register(name)(words) and name


def handler(name: str, *kinds: str) -> Callable[[Find], Find]:
    """Register a function ``(path, module, model) -> groups that this module owns`` (often none), of these kinds."""

    def decorate(find: Find) -> Find:
        HANDLERS.register(name)(Handler(find, frozenset(kinds)))
        return find

    return decorate


def find_groups(model: nn.Module, kinds: str | Collection[str] | None = None) -> list[PrunableGroup]:
    """Find everything that may be removed from `model`, in module order.

    Args:
        model: A diffusers denoiser, on any device (the meta device too).
        kinds: Restrict to this kind, or these; None for all.

    Returns:
        Groups of two units or more, and blocks (one unit each).

    Raises:
        PruningError: For an unknown kind or none, or if nothing can be removed.
    """
    wanted = (kinds,) if isinstance(kinds, str) else tuple(names_of("group kind") if kinds is None else kinds)
    if not wanted:
        raise PruningError(f"kinds is empty; name at least one of {', '.join(KINDS)}, or None for all")
    for name in wanted:
        if name not in KINDS:
            raise PruningError(unknown("group kind", name, KINDS))
    name = type(model).__name__
    if not type(model).__module__.startswith("diffusers."):
        logger.warning("%s is not a class of diffusers; nothing of it was tested, so check the result", name)
    groups = list(discover(model, wanted))
    if not groups:
        raise PruningError(f"{name} has no prunable groups of kind {', '.join(wanted)}")
    return groups


def discover(model: nn.Module, kinds: Collection[str] | None = None) -> Iterator[PrunableGroup]:
    """Yield every group of `model`, of these kinds or all, in module order; nothing is an answer too."""
    asked = [one for _, one in HANDLERS.items() if kinds is None or one.kinds & {*kinds}]
    for path, module in model.named_modules():
        for one in asked:
            yield from (
                group for group in one.find(path, module, model) if kinds is None or group.kind in kinds
            )


def recorded(model: nn.Module, path: str) -> Mapping[str, Any]:
    """Return what the model's config records of an earlier cut of the module at `path`; nothing if it was not cut."""
    entry = config_of(model).get(PRUNING_KEY) if hasattr(model, "config") else None
    modules = entry.get("modules") if isinstance(entry, Mapping) else None
    found = modules.get(path) if isinstance(modules, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def rows(path: str, module: nn.Module, unit_size: int, offset: int = 0) -> list[ParamSlice]:
    """Return the slices of `module`'s weight and bias rows (dimension 0), for producers and norms."""
    names = [name for name in ("weight", "bias") if getattr(module, name, None) is not None]
    return [ParamSlice(f"{path}.{name}", 0, unit_size, offset) for name in names]


def all_rows(path: str, module: nn.Module, channels: int, unit_size: int = 1) -> list[ParamSlice]:
    """Return the rows of a layer for `channels` channels: once, or once for each of its parts (value and gate, …)."""
    count = len(cast(Tensor, module.weight)) if getattr(module, "weight", None) is not None else 0
    return [part for offset in range(0, count, channels) for part in rows(path, module, unit_size, offset)]


def columns(path: str, unit_size: int, offset: int = 0) -> ParamSlice:
    """Return the slice of a consumer's weight columns (dimension 1)."""
    return ParamSlice(f"{path}.weight", 1, unit_size, offset)
