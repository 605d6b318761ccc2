"""Rounds of a calibration: groups are measured some at a time, so that what is summed fits into memory.

Every round shows the model the same inputs, so the outcome is that of one round over all groups; it costs a forward
(and a backward pass, where gradients are wanted) each. How many rounds that takes follows from what a call needs beside
the sums, which is measured beforehand on one batch (a rehearsal), if memory may be short at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch

from pruning.data.batches import NoisedBatches
from pruning.errors import PruningError
from pruning.files import size
from pruning.memory import Peak, held_bytes, usable_bytes
from pruning.types import PrunableGroup

AMPLE = 0.25
"""Share of the memory up to which weights and sums together need no rehearsal: calls have the rest."""

SPARE = 1.1
"""What a call needs, by what it needed in the rehearsal."""

BATCH_SHARE = 0.5
"""Most of the room beside the largest group's sums that goes into larger batches; the rest makes rounds few."""

T = TypeVar("T")
Bytes = Callable[[PrunableGroup], int]
Rehearse = Callable[[Sequence[PrunableGroup], NoisedBatches], object]
"""Measures some groups on some batches, and throws away what was found."""


@dataclass(frozen=True)
class Rounds:
    """How a calibration goes about its work.

    Attributes:
        groups: The groups of each round.
        bytes: What is summed of all groups.
        batch_size: Most samples of a call; None: as the source has them.
        seconds: About how long all rounds take; None: not known.
    """

    groups: tuple[tuple[PrunableGroup, ...], ...]
    bytes: int
    batch_size: int | None = None
    seconds: float | None = None

    @property
    def was_planned(self) -> bool:
        """Whether memory was short enough to measure what a call takes."""
        return self.seconds is not None or len(self.groups) > 1

    def __str__(self) -> str:
        count = len(self.groups)
        text = f"{size(self.bytes)} of sums in {count} round{'s' * (count != 1)}"
        text += (
            ""
            if self.batch_size is None
            else f", {self.batch_size} sample{'s' * (self.batch_size != 1)} a call"
        )
        return text if self.seconds is None else f"{text}, about {max(1, round(self.seconds / 60))} min"


def is_ample(sums: int, weights: int, memory: int) -> bool:
    """Tell whether memory is so large for a calibration that what its calls take need not be known."""
    return sums + weights <= AMPLE * memory


def split(groups: Iterable[T], bytes_of: Callable[[T], int], room: float) -> tuple[tuple[T, ...], ...]:
    """Return the groups in rounds of neighbours that fit into `room` together, as evenly filled as can be.

    Neighbours, since a backward pass goes down to the first layer that is asked for, and no further. A group that is
    larger than the room has a round of its own.
    """
    groups = list(groups)
    sizes = [bytes_of(group) for group in groups]
    fewest = len(_filled(sizes, room))
    low, high = max(sizes, default=0), room  # the smallest room that makes no more rounds fills them evenly
    while high - low > 0.01 * room:
        middle = (low + high) / 2
        low, high = (low, middle) if len(_filled(sizes, middle)) <= fewest else (middle, high)
    found = _filled(sizes, max(high, low))
    return tuple(tuple(groups[start:end]) for start, end in found)


def _filled(sizes: Sequence[int], room: float) -> list[tuple[int, int]]:
    """Return start and end of each round if each takes as many neighbours as fit."""
    rounds, start, total = [], 0, 0
    for place, one in enumerate(sizes):
        if place > start and total + one > room:
            rounds.append((start, place))
            start, total = place, 0
        total += one
    return [*rounds, (start, len(sizes))] if len(sizes) > start else rounds


def plan_rounds(
    groups: Sequence[PrunableGroup],
    source: object,
    rehearse: Rehearse,
    *,
    bytes_of: Bytes,
    weights: int,
    memory: int | None,
    device: torch.device,
) -> Rounds:
    """Decide how many groups are measured at a time, and how large batches are.

    Args:
        groups: All groups.
        source: What is shown; what is only watched is not rehearsed.
        rehearse: Shows the model the first batches.
        bytes_of: A group -> what is summed of it and held for it.
        weights: Bytes of the model's weights.
        memory: Bytes that the process may hold on `device`; None: most of what is free.
        device: Where the model is.

    Raises:
        PruningError: If there is no room for one sample and the largest group's sums.
    """
    limit = usable_bytes(device) if memory is None else memory
    sums = {group: bytes_of(group) for group in groups}
    total, largest = sum(sums.values()), max(sums.values(), default=0)
    if is_ample(total, weights, limit) or not groups:
        return Rounds((tuple(groups),), total)
    if not isinstance(source, NoisedBatches):
        room = limit - held_bytes(device)
        return Rounds(split(groups, sums.__getitem__, max(room / 2, largest)), total)
    biggest = max(groups, key=sums.__getitem__)
    shown = list(dict.fromkeys([groups[0], biggest]))
    seen = [_seen(rehearse, shown, source, count, device) for count in _rehearsed_sizes(source)]
    held = held_bytes(device)
    fixed, each = _per_sample([taken - sum(sums[group] for group in shown) for taken, _, _ in seen])
    room = limit - held - SPARE * (fixed + each)
    if room < largest:
        raise PruningError(
            f"the memory is too small: of {size(limit)}, {size(held)} are held already (libraries and the model's "
            f"weights among them), a call of one sample takes {size(SPARE * (fixed + each))} and the sums of group "
            f"{biggest.name!r} {size(largest)}; give more (calibrate.memory_gb), smaller samples, or fewer kinds of "
            "groups"
        )
    more = int(BATCH_SHARE * (room - largest) / (SPARE * max(each, 1)))
    batch = min(source.batch_size, 1 + more)
    room -= SPARE * each * (batch - 1)
    rounds = split(groups, sums.__getitem__, room)
    seconds = seen[-1][1] / seen[-1][2] * source.rows * len(rounds)
    return Rounds(rounds, total, batch if source.remake is not None else None, seconds)


def _rehearsed_sizes(source: NoisedBatches) -> list[int | None]:
    """Return of how many samples the batches are that are rehearsed; None: as the source has them."""
    if source.remake is None:
        return [None]
    return [1, 2] if source.batch_size > 1 else [1]


def _seen(
    rehearse: Rehearse,
    groups: Sequence[PrunableGroup],
    source: NoisedBatches,
    batch_size: int | None,
    device: torch.device,
) -> tuple[int, float, int]:
    """Return what a call took in memory, bytes, how long it took, and how many rows it had."""
    whole = source if batch_size is None or source.remake is None else source.remake(batch_size)
    batches = list(islice(whole, 1))
    began = time.perf_counter()
    with Peak(device) as peak:
        rehearse(groups, replace(whole, make=lambda: batches))
    rows = sum(len(batch.sample_ids) for batch in batches)
    return peak.bytes - peak.before, time.perf_counter() - began, max(rows, 1)


def _per_sample(taken: Sequence[int]) -> tuple[float, float]:
    """Return what any call takes and what each sample adds, from calls of one sample, and of two if there are."""
    first, last = max(taken[0], 0), max(taken[-1], 0)
    each = last if len(taken) == 1 else max(last - first, 0.1 * first)
    return max(first - each, 0), each
