"""Where the latents are inside a call: the leaf that equals c times the scheduler's sample, or holds it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning.recording.trees import Path, at, leaves, with_leaf

NEAR = 5e-3
"""Relative distance, root of the sum of squares, at which two tensors are the same: bfloat16 rounds to 2e-3."""

MOST_AXES = 5
"""Dimensions longer than 1 of which all orders are tried."""


@dataclass(frozen=True)
class Placement:
    """A part of a tree that is ``scale * x`` with x the scheduler's sample, of one row.

    ``leaf.narrow(axis, offset, size) = scale * x`` where `axis` is given; else the leaf is ``scale * x`` with its
    dimensions in the order `order`, reshaped to the leaf's shape.

    Attributes:
        path: Of the leaf.
        slot: Which of the step's samples: a pipeline may denoise a video and its sound side by side.
        scale: c; samplers with a sigma scale what they show the model.
    """

    path: Path
    slot: int
    scale: float
    order: tuple[int, ...] | None = None
    axis: int | None = None
    offset: int = 0
    size: int = 0

    def get(self, tree: Any, shape: tuple[int, ...]) -> Tensor:
        """Return x as it is in the tree, in the scheduler's layout, of shape `shape`."""
        leaf = at(tree, self.path)
        if self.axis is not None:
            leaf = leaf.narrow(self.axis, self.offset, self.size)
        if self.order is not None:
            inner = [shape[axis] for axis in self.order]
            back = [self.order.index(axis) for axis in range(len(shape))]
            leaf = leaf.reshape(inner).permute(back)
        return leaf.reshape(shape) / self.scale

    def put(self, tree: Any, x: Tensor) -> Any:
        """Return the tree with x (the scheduler's layout) in the place of the x that it holds."""
        leaf = at(tree, self.path)
        value = self.scale * x
        if self.axis is not None:
            whole = leaf.clone()
            whole.narrow(self.axis, self.offset, self.size).copy_(value)
            return with_leaf(tree, self.path, whole)
        if self.order is not None:
            value = value.permute(self.order)
        return with_leaf(tree, self.path, value.reshape(leaf.shape).to(leaf))

    def cleared(self, tree: Any) -> Any:
        """Return the tree with zeros in the place of x."""
        leaf = at(tree, self.path)
        whole = torch.zeros_like(leaf) if self.axis is None else leaf.clone()
        if self.axis is not None:
            whole.narrow(self.axis, self.offset, self.size).zero_()
        return with_leaf(tree, self.path, whole)


def find(tree: Any, x: Tensor, slot: int) -> list[Placement]:
    """Return everywhere that x, one sample in the scheduler's layout, is inside the arguments of one row."""
    if not float(x.norm()):
        return []
    found = []
    for path, leaf in leaves(tree):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() >= x.numel():
            found += _slices(path, leaf, x, slot) or _whole(path, leaf, x, slot)
    return found


def _slices(path: Path, leaf: Tensor, x: Tensor, slot: int) -> list[Placement]:
    """Return the slices of a leaf, longer along one axis, that are x."""
    if leaf.ndim != x.ndim:
        return []
    wider = [axis for axis in range(x.ndim) if leaf.shape[axis] != x.shape[axis]]
    if len(wider) != 1:
        return []
    axis, size = wider[0], x.shape[wider[0]]
    scales = ((at, ratio(leaf.narrow(axis, at, size), x)) for at in range(leaf.shape[axis] - size + 1))
    return [Placement(path, slot, scale, None, axis, at, size) for at, scale in scales if scale]


def _whole(path: Path, leaf: Tensor, x: Tensor, slot: int) -> list[Placement]:
    """Return how a leaf as large as x is x: as it is, or with its dimensions in another order."""
    if leaf.numel() != x.numel():
        return []
    if leaf.shape == x.shape and (scale := ratio(leaf, x)):
        return [Placement(path, slot, scale)]
    single = tuple(axis for axis in range(x.ndim) if x.shape[axis] == 1)
    longer = tuple(axis for axis in range(x.ndim) if x.shape[axis] != 1)
    for turned in itertools.permutations(longer) if len(longer) <= MOST_AXES else (longer,):
        if scale := ratio(leaf, x.permute(single + turned)):
            return [Placement(path, slot, scale, single + turned)]
    return []


def ratio(y: Tensor, x: Tensor) -> float | None:
    """Return c with y = c x, entry by entry in memory's order, or None where there is none or it is 0."""
    y, x = y.double().flatten(), x.double().flatten()
    energy = float(x @ x)
    scale = float(y @ x) / energy if energy else 0.0
    is_same = abs(scale) > 1e-6 and float((y - scale * x).norm()) < NEAR * float(y.norm())
    if not is_same:
        return None
    return float(round(scale)) if abs(abs(scale) - 1) < 1e-6 else scale
