"""Sampling steps, as they were watched, cut into rows whose tensors are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from pruning.errors import PruningError, named
from pruning.recording.axes import Axes, count_rows, cut
from pruning.recording.format import Row
from pruning.recording.levels import Level, as_number, level_at
from pruning.recording.placements import find
from pruning.recording.tensors import Tensors
from pruning.recording.trees import encoded
from pruning.recording.watching import Call, SamplingStep, Update


def points_of(sample: int, steps: int, points: int | None) -> set[int]:
    """Return the positions that are kept of a sample's steps: one in each of `points` equal parts, None for all.

    The place within a part moves on with the sample, so that all steps come up over the samples.
    """
    if points is None or points >= steps:
        return set(range(steps))
    edges = [part * steps // points for part in range(points + 1)]
    return {low + sample % (high - low) for low, high in pairwise(edges)}


def rows_of_call(call: Call, axes: Axes) -> list[Any]:
    """Return the arguments of each row of a call."""
    count = count_rows(call.arguments, axes)
    return [cut(call.arguments, axes, count, row) for row in range(count)]


def rows_of_run(
    sample: int,
    steps: Sequence[SamplingStep],
    chosen: set[int],
    inputs: Mapping[str, Axes],
    tensors: Tensors,
    *,
    with_latents: bool = True,
) -> Iterator[Row]:
    """Yield the rows of the chosen steps of a run; a PruningError names an argument that cannot be kept.

    Args:
        sample: Number of the sample.
        steps: Its run.
        chosen: Positions.
        inputs: Batch axes by denoiser.
        tensors: Keeps the tensors.
        with_latents: Else zeros stand in their place.
    """
    for position in sorted(chosen):
        step = steps[position]
        updates = [update for update in step.updates if isinstance(update.sample, Tensor)]
        levels = levels_of(updates)
        for number, call in enumerate(step.calls):
            for branch, tree in enumerate(rows_of_call(call, inputs[call.denoiser])):
                places = [
                    place
                    for slot, update in enumerate(updates)
                    for place in find(tree, update.sample[:1], slot)
                ]
                # Of several steps of the scheduler on one sample the last counts.
                known = {(place.path, place.axis, place.offset): place for place in places}
                if not with_latents:
                    for place in known.values():
                        tree = place.cleared(tree)
                yield Row(
                    sample=sample,
                    step=position,
                    call=number,
                    branch=branch,
                    denoiser=call.denoiser,
                    tree=encoded(tree, tensors.keep, f"denoiser {call.denoiser!r}"),
                    t=as_number(updates[0].t) if updates else None,
                    levels=levels,
                    places=tuple(known.values()),
                )


def levels_of(updates: Sequence[Update]) -> tuple[Level, ...] | None:
    """Return signal and noise of the samples of a step, None where one is not known."""
    found = [level_at(update.scheduler, update.t) for update in updates]
    known = tuple(level for level in found if level is not None)
    return known if known and len(known) == len(found) else None


def ends_of_run(steps: Sequence[SamplingStep], tensors: Tensors) -> list[str]:
    """Keep what a run ended at, one sample in the scheduler's layout for each slot."""
    last = steps[-1].updates if steps else []
    with named("the end of the run", PruningError):
        return [tensors.keep(update.result[:1]) for update in last if isinstance(update.result, Tensor)]
