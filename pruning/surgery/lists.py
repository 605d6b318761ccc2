"""Taking items out of lists of modules: those behind move forward, and so do the paths that are recorded of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import nn

from pruning.types import LENGTH, PrunableGroup, inside


def shifted(path: str, parent: str, removed_index: int) -> str:
    """Return `path` after item `removed_index` of the list at `parent` was deleted."""
    if not path.startswith(parent + "."):
        return path
    index, dot, rest = path[len(parent) + 1 :].partition(".")
    return f"{parent}.{int(index) - 1}{dot}{rest}" if int(index) > removed_index else path


def take_items(
    model: nn.Module, removed: Mapping[PrunableGroup, Sequence[int]], modules: dict[str, Any]
) -> dict[str, Any]:
    """Delete the items of lists that are removed units.

    Args:
        model: The model, cut in place.
        removed: Units that go, by group.
        modules: Records of its modules by path.

    Returns:
        The records of the modules that are left, where they are now, and the lengths of the lists.
    """
    for group, units in removed.items():
        for parent in group.lists:
            items = cast(nn.ModuleList, model.get_submodule(parent))
            for unit in sorted(units, reverse=True):
                del items[unit]
                modules = {
                    shifted(path, parent, unit): record
                    for path, record in modules.items()
                    if not inside(path, f"{parent}.{unit}")
                }
            modules[parent] = {"attributes": {LENGTH: len(items)}}
    return modules
