"""Discovery: walk the module tree and ask every handler what it finds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.registry import Registry
from pruning.settings import KINDS
from pruning.types import PRUNING_KEY, ParamSlice, PrunableGroup, config_of

logger = logging.getLogger(__name__)

Handler = Callable[[str, nn.Module, nn.Module], Iterable[PrunableGroup]]

HANDLERS: Registry[Handler] = Registry("group handler")


def handler(name: str) -> Callable[[Handler], Handler]:
    """Register a handler: ``(path, module, model) -> groups that this module owns`` (often none)."""
    return HANDLERS.register(name)


def find_groups(model: nn.Module, kinds: str | Collection[str] | None = None) -> list[PrunableGroup]:
    """Find everything that may be removed from `model`, in module order.

    Args:
        model: A diffusers denoiser, on any device (the meta device too).
        kinds: Restrict to this kind, or these; None for all of `pruning.settings.KINDS`.

    Returns:
        Groups of two units or more, and blocks (one unit each).

    Raises:
        PruningError: For an unknown kind or none, or if nothing can be removed.
    """
    wanted = (kinds,) if isinstance(kinds, str) else tuple(KINDS if kinds is None else kinds)
    if not wanted:
        raise PruningError(f"kinds is empty; name at least one of {', '.join(KINDS)}, or None for all")
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise PruningError(f"unknown group kind {unknown[0]!r}; valid: {', '.join(KINDS)}")
    name = type(model).__name__
    if not type(model).__module__.startswith("diffusers."):
        logger.warning("%s is not a class of diffusers; nothing of it was tested, so check the result", name)
    groups = [group for group in discover(model) if group.kind in wanted]
    if not groups:
        raise PruningError(f"{name} has no prunable groups of kind {', '.join(wanted)}")
    return groups


def discover(model: nn.Module) -> Iterator[PrunableGroup]:
    """Yield every group of `model` in module order; nothing is an answer too."""
    handlers = HANDLERS.items()
    for path, module in model.named_modules():
        for _, find in handlers:
            yield from find(path, module, model)


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
