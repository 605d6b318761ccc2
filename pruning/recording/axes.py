"""Which axis of each argument is the batch: learned from a run of one sample and a run of two; cut and join by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pruning.recording.trees import Path, at, leaves, sequence_like

LIST, EACH = "list", "each"
Axis = int | str
"""The dimension of a tensor; `LIST`: a list with entries for every row; `EACH`: one number that all rows share, which
the denoiser also takes as a tensor with one for every row."""

Axes = Mapping[Path, Axis]
"""Axis by path; what is not named here is shared by all rows."""


def compared(one: Any, two: Any, path: Path = ()) -> Iterator[tuple[Path, Axis]]:
    """Yield the axes along which the arguments of a call for two samples are twice as long as of one for one."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in one:
            yield from compared(one[key], two.get(key), (*path, key))
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if one and len(two) == 2 * len(one):
            yield path, LIST
        else:
            for index, (a, b) in enumerate(zip(one, two, strict=False)):
                yield from compared(a, b, (*path, index))
    elif isinstance(one, Tensor) and isinstance(two, Tensor) and one.ndim == two.ndim:
        grown = [k for k in range(one.ndim) if one.shape[k] and two.shape[k] == 2 * one.shape[k]]
        if grown:
            yield path, grown[0]


def guessed(tree: Any, sample: Any) -> dict[Path, Axis]:
    """Return axes where two samples cannot be asked for: the first of each tensor as long there as the latents are."""
    found = [leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor) and _is_like(leaf, sample)]
    if not found:
        return {}
    rows = found[0].shape[0]
    return {
        path: 0
        for path, leaf in leaves(tree)
        if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == rows
    }


def _is_like(leaf: Tensor, sample: Any) -> bool:
    return isinstance(sample, Tensor) and leaf.ndim == sample.ndim and leaf.numel() >= sample.numel()


def count_rows(tree: Any, axes: Axes) -> int:
    """Return the rows of a call: the least length along a batch axis, for some tensors hold several entries a row."""
    sizes = []
    for path, axis in axes.items():
        found = at(tree, path)
        if axis == LIST:
            sizes.append(len(found))
        elif isinstance(axis, int) and isinstance(found, Tensor) and found.shape[axis]:
            sizes.append(found.shape[axis])
    return min(sizes, default=1)


def cut(tree: Any, axes: Axes, rows: int, row: int, path: Path = ()) -> Any:
    """Return the part of a call that is of one of its rows."""
    axis = axes.get(path)
    if isinstance(tree, Mapping):
        return {key: cut(entry, axes, rows, row, (*path, key)) for key, entry in tree.items()}
    if isinstance(tree, (list, tuple)):
        if axis == LIST:
            part = len(tree) // rows
            return sequence_like(tree, list(tree[row * part : (row + 1) * part]))
        return sequence_like(tree, [cut(e, axes, rows, row, (*path, i)) for i, e in enumerate(tree)])
    if isinstance(tree, Tensor) and isinstance(axis, int):
        part = tree.shape[axis] // rows
        return tree.narrow(axis, row * part, part)
    return tree


def joined(trees: Sequence[Any], axes: Axes, path: Path = ()) -> Any:
    """Return one call of several rows, as `cut` gives them; what they share is taken from the first."""
    axis, first = axes.get(path), trees[0]
    if isinstance(first, Mapping):
        return {key: joined([tree[key] for tree in trees], axes, (*path, key)) for key in first}
    if isinstance(first, (list, tuple)):
        if axis == LIST:
            return sequence_like(first, [entry for tree in trees for entry in tree])
        parts = range(len(first))
        return sequence_like(first, [joined([tree[i] for tree in trees], axes, (*path, i)) for i in parts])
    if axis == EACH:
        return torch.stack([torch.as_tensor(tree).reshape(()) for tree in trees])
    if isinstance(first, Tensor) and isinstance(axis, int):
        return torch.cat(list(trees), axis)
    return first


def form_of(node: Any, axes: Axes, path: Path = ()) -> Any:
    """Return of the encoded arguments of a row what rows of one call must have in common."""
    axis = axes.get(path)
    if axis == EACH:
        return "each"
    if "tensor" in node:
        if axis is None:
            return node["tensor"]
        return [size for k, size in enumerate(node["shape"]) if k != axis] + [node["dtype"]]
    ((kind, value),) = node.items()
    if kind == "map":
        return {key: form_of(entry, axes, (*path, key)) for key, entry in value.items()}
    if kind in ("list", "tuple"):
        return "list" if axis == LIST else [form_of(entry, axes, (*path, i)) for i, entry in enumerate(value)]
    return node
