"""A recording, held against itself as it is opened: nothing that stands in its files is trusted, and no value is read.

Tensors are taken without their values, on the meta device, where placements and batch axes can be tried for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.recording.axes import EACH, LIST, Axes, Axis
from pruning.recording.decoding import DECODING, Decoding
from pruning.recording.format import ADVICE, Row
from pruning.recording.placements import Placement
from pruning.recording.trees import at, decoded, words

if TYPE_CHECKING:
    from pruning.recording.calls import RecordedCalls

MISFITS = (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError)
"""What a place raises that is not there, or not of that form."""


def check(calls: RecordedCalls) -> None:
    """Raise PruningError, naming folder and row, for anything that does not fit together."""
    with _refused(f"{calls.folder}: ends of the samples"):
        ends = {sample: [calls.outline(key) for key in keys] for sample, keys in calls.x0.items()}
    latent = _latent_of_images(calls)
    seen = set[tuple[int, int, int, int]]()
    never = {(name, path) for name, one in calls.head.denoisers.items() for path in one.inputs}
    asked = {row.denoiser for row in calls.rows}  # few points may leave out one of two
    for row in calls.rows:
        with _refused(f"{calls.folder}: {row.name}"):
            if row.denoiser not in calls.head.denoisers:
                raise ValueError("no such denoiser is described")
            if row.sample not in ends or row.step >= calls.head.steps:
                raise ValueError(f"{len(ends)} samples and {calls.head.steps} steps are described")
            if (place := (row.sample, row.step, row.call, row.branch)) in seen:
                raise ValueError("it is there twice")
            seen.add(place)
            tree = decoded(row.tree, calls.outline)
            if not isinstance(tree, dict):
                raise ValueError("its arguments have no names")
            shapes = [tuple(end.shape) for end in ends[row.sample]] or [latent]
            _check_places(calls, row, tree, shapes)
            axes = calls.head.denoisers[row.denoiser].inputs
            never -= {(row.denoiser, path) for path in _checked_axes(tree, axes)}
    if calls.head.branches is not None:
        _check_branches(calls)
    if not calls.rows and calls.recorded:
        raise PruningError(f"{calls.folder}: it holds no rows; {ADVICE}")
    if missing := [axis for axis in never if axis[0] in asked]:
        name, path = min(missing, key=str)
        raise PruningError(f"{calls.folder}: {name}: no row has the batch axis of {words(path)}; {ADVICE}")


def _check_branches(calls: RecordedCalls) -> None:
    """Raise PruningError unless the later steps of every sample can be made of its first one."""
    known, begun = set(map(tuple, calls.head.branches or ())), dict[int, set[tuple[int, int]]]()
    for row in calls.rows:
        with _refused(f"{calls.folder}: {row.name}"):
            if (row.call, row.branch) not in known or (row.sample and row.step):
                raise ValueError(
                    "it is of none of the branches, or of a later step, which are described as kept"
                )
        if not row.step:
            begun.setdefault(row.sample, set()).add((row.call, row.branch))
    for sample in range(calls.recorded):
        if begun.get(sample) != known:
            raise PruningError(f"{calls.folder}: sample {sample}: its first step is not whole; {ADVICE}")


@contextmanager
def _refused(place: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        text = str(error).removesuffix(f"; {ADVICE}")
        raise PruningError(f"{place}: {text}; {ADVICE}") from error


def _latent_of_images(calls: RecordedCalls) -> tuple[int, ...] | None:
    """Return the shape of the latents that images become; None where they do not enter."""
    if not calls.head.identity.get("for_images"):
        return None
    return Decoding.load(calls.folder / DECODING).latent


def _check_places(
    calls: RecordedCalls, row: Row, tree: Any, shapes: Sequence[tuple[int, ...] | None]
) -> None:
    """Try to take the latents out of a row and to put others in, where that will be done; shapes by slot."""
    target = calls.head.target
    if target is None or row.levels is None:
        return
    for place in row.places:
        if place.slot >= min(len(row.levels), len(target.maps[row.step]), len(shapes)):
            raise ValueError(f"{words(place.path)}: there is no sample {place.slot}")
        try:
            leaf = at(tree, place.path)
            _try_place(replace(place, path=(), scale=1.0), tuple(leaf.shape), shapes[place.slot])
        except MISFITS as error:
            raise ValueError(f"the latents do not fit at {words(place.path)} ({error})") from error


@cache
def _try_place(place: Placement, leaf: tuple[int, ...], shape: tuple[int, ...] | None) -> None:
    """Take the latents of a shape out of a leaf and put others in; raises one of `MISFITS` where that does not fit."""
    whole = torch.empty(leaf, device="meta")
    place.put(whole, torch.empty_like(place.get(whole, shape or leaf)))


def _checked_axes(tree: Any, axes: Axes) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of batch axes that the arguments have; one that cannot be is a ValueError."""
    for path, axis in axes.items():
        try:
            leaf = at(tree, path)
        except MISFITS:
            continue  # an argument that not all calls have
        if not _fits(leaf, axis):
            raise ValueError(f"{words(path)} has no batch axis {axis!r}")
        yield path


def _fits(leaf: Any, axis: Axis) -> bool:
    """Tell whether a leaf can have a batch axis; one that is no tensor has none at a dimension and is left as it is."""
    if axis == LIST:
        return not isinstance(leaf, Tensor)
    if axis == EACH:
        return leaf.numel() == 1 if isinstance(leaf, Tensor) else isinstance(leaf, (int, float))
    return not isinstance(leaf, Tensor) or (isinstance(axis, int) and axis < leaf.ndim)
