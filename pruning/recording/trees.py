"""Trees of call arguments: mappings, lists and tuples whose leaves are tensors and plain values; as JSON, no pickle."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pruning.errors import PruningError, named, shown

Path = tuple[str | int, ...]
"""Where a leaf is in a tree: keys of mappings and positions in lists."""

MOST_LEVELS = 16
"""Nesting that is still read; what pipelines hand over has at most four levels."""

_KEPT = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_KEPT += (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
_KEPT += (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = {str(dtype)[6:]: dtype for dtype in _KEPT}
"""Types of tensors that are kept, by name."""


def words(path: Path) -> str:
    """Return a path for people, such as ``image_rotary_emb/0``; the whole tree is ``(all)``."""
    return "/".join(map(str, path)) or "(all)"


def arguments_of_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``module(*args, **kwargs)`` by the names of its forward; ``return_dict`` is left out."""
    signature = inspect.signature(type(original(module)).forward)
    found: dict[str, Any] = {}
    for name, value in list(signature.bind_partial(module, *args, **kwargs).arguments.items())[1:]:
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    found.pop("return_dict", None)
    return found


def original(module: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile`` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every leaf with its path, in order."""
    for key, entry in _entries(tree):
        yield from leaves(entry, (*path, key))
    if not isinstance(tree, (Mapping, list, tuple)):
        yield path, tree


def _entries(tree: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, (list, tuple)):
        yield from enumerate(tree)


def at(tree: Any, path: Path) -> Any:
    """Return what is at a path; a KeyError or IndexError says that nothing is."""
    found: Any = tree
    for key in path:
        if not isinstance(found, (Mapping, list, tuple)):
            raise KeyError(key)
        found = cast(Any, found)[key]
    return found


def with_leaf(tree: Any, path: Path, value: Any) -> Any:
    """Return the tree with another value at a path; what is not on the path is shared."""
    if not path:
        return value
    if isinstance(tree, Mapping):
        return {**tree, path[0]: with_leaf(tree[path[0]], path[1:], value)}
    entries = list(tree)
    assert isinstance(path[0], int)
    entries[path[0]] = with_leaf(entries[path[0]], path[1:], value)
    return sequence_like(tree, entries)


def sequence_like(tree: list[Any] | tuple[Any, ...], entries: list[Any]) -> Any:
    """Return entries as a list or a tuple, whichever `tree` is; of named tuples a plain one."""
    return entries if isinstance(tree, list) else tuple(entries)


def longer_types(tree: Any) -> frozenset[Path]:
    """Return where floating point tensors are that the model takes in a longer type than its own, such as positions.

    The model's own type is the shortest of those of two or more dimensions.
    """
    sizes = {
        path: leaf.dtype.itemsize
        for path, leaf in leaves(tree)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1
    }
    return frozenset(path for path, size in sizes.items() if size > min(sizes.values()))


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Return a tree of the same form whose leaves are changed."""
    if isinstance(tree, Mapping):
        return {key: mapped(entry, change) for key, entry in tree.items()}
    if isinstance(tree, (list, tuple)):
        return sequence_like(tree, [mapped(entry, change) for entry in tree])
    return change(tree)


def copied(tree: Any) -> Any:
    """Return a copy on the CPU that later changes in place do not reach, tensors detached."""
    return mapped(tree, lambda leaf: leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf)


def on_device(tree: Any, device: torch.device) -> Any:
    """Return the tree with its tensors on a device."""
    return mapped(tree, lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)


def encoded(tree: Any, keep: Callable[[Tensor], str], place: str, path: Path = ()) -> Any:
    """Return a tree as JSON types; each node is a mapping with one entry that says what it is.

    Args:
        tree: What to encode.
        keep: Keeps a tensor and returns its key.
        place: Whose arguments these are, for messages.
        path: Where the tree is.

    Raises:
        PruningError: For an argument of a type that cannot be kept.
    """
    if isinstance(tree, Tensor):
        with named(f"{place}: {words(path)}", PruningError):
            return {"tensor": keep(tree), "shape": list(tree.shape), "dtype": str(tree.dtype)[6:]}
    if isinstance(tree, Mapping):
        if odd := [key for key in tree if not isinstance(key, str)]:
            raise PruningError(f"{place}: {words(path)} has the key {shown(odd[0])}, which is no text")
        return {"map": {key: encoded(entry, keep, place, (*path, key)) for key, entry in tree.items()}}
    if isinstance(tree, (list, tuple)):
        entries = [encoded(entry, keep, place, (*path, index)) for index, entry in enumerate(tree)]
        return {"list" if isinstance(tree, list) else "tuple": entries}
    if isinstance(tree, np.generic):
        tree = tree.item()
    if isinstance(tree, np.ndarray):
        raise PruningError(f"{place}: {words(path)} is a NumPy array, which is not kept")
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"number": str(tree)}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return {"value": tree}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree)[6:]}
    raise PruningError(
        f"{place}: the argument {words(path)} is a {type(tree).__name__}, which cannot be kept on disk; a cache that "
        "the pipeline carries from call to call makes each call depend on those before"
    )


def decoded(node: Any, read: Callable[[str], Tensor], depth: int = 0) -> Any:
    """Return the tree that `encoded` gave, its tensors as `read` returns them by key.

    Raises:
        ValueError: For anything that `encoded` does not write.
    """
    if depth > MOST_LEVELS or not isinstance(node, dict) or not node:
        raise ValueError(f"{shown(node)} is no node of a tree")
    if "tensor" in node:
        if not isinstance(node["tensor"], str):
            raise ValueError(f"{shown(node['tensor'])} is no name of a tensor")
        tensor = read(node["tensor"])
        if list(tensor.shape) != node.get("shape") or str(tensor.dtype)[6:] != node.get("dtype"):
            raise ValueError(f"tensor {node['tensor']!r} is not of the shape and type that its row says")
        return tensor
    ((kind, value),) = node.items()
    if kind == "map" and isinstance(value, dict):
        return {key: decoded(entry, read, depth + 1) for key, entry in value.items()}
    if kind in ("list", "tuple") and isinstance(value, list):
        entries = [decoded(entry, read, depth + 1) for entry in value]
        return entries if kind == "list" else tuple(entries)
    if kind == "value" and (value is None or isinstance(value, (bool, int, float, str))):
        return value
    if kind == "number" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "dtype" and value in DTYPES:
        return DTYPES[value]
    raise ValueError(f"{shown(node)} is no node of a tree")
