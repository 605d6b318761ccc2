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


def take_item(model: nn.Module, parent: str, index: int, key: dict[str, Any]) -> None:
    """Delete an item of the list at `parent`; in the config entry `key` its records go, those behind move forward."""
    del cast(nn.ModuleList, model.get_submodule(parent))[index]
    item = f"{parent}.{index}"
    key["modules"] = {
        shifted(path, parent, index): record
        for path, record in key["modules"].items()
        if not inside(path, item)
    }
    key["removed_blocks"] = [
        shifted(path, parent, index) for path in key["removed_blocks"] if not inside(path, item)
    ]


def take_units(model: nn.Module, removed: Mapping[PrunableGroup, Sequence[int]], key: dict[str, Any]) -> None:
    """Delete the items of lists that are removed units, and write the lengths of these lists into `key`.

    Args:
        model: The model, cut in place.
        removed: Units that go, by group.
        key: Config entry, brought up to date in place.
    """
    for group, units in removed.items():
        for parent in group.lists:
            for unit in sorted(units, reverse=True):
                take_item(model, parent, unit, key)
            items = cast(nn.ModuleList, model.get_submodule(parent))
            key["modules"][parent] = {"attributes": {LENGTH: len(items)}}
