"""Evaluations on the way: the loss on held-out samples, with fixed noise and the averaged weights; stopping early.

What is held out is never trained on. Its batches are made as those of training are, of other draws, the same at every
evaluation and for any number of processes, so that the losses of a run can be compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from pruning.data import sample_generator
from pruning.errors import PruningError
from pruning.recovery.batches import Batches, Share
from pruning.settings import Recover

T = TypeVar("T")

HELD = 23
"""Stream of `sample_generator` that draws which samples are held out."""

SHARE, MOST = 10, 64
"""Where nobody says how many are held out: one of so many, and at most."""

ROUNDS = 4
"""Times that each held-out sample is shown, at other timesteps with other noise."""

OTHER_DRAWS = 1 << 40
"""What the seed of the batches of training and of evaluation differ by."""


@dataclass(frozen=True)
class HeldOut:
    """What training is judged by.

    Attributes:
        samples: How many are held out.
        batches: (what a process works on) -> batches of them.
    """

    samples: int
    batches: Callable[[Share], Batches]

    def of(self, share: Share) -> tuple[Batches, int]:
        """Return the batches of a process, and how many steps of them are an evaluation."""
        steps = -(-ROUNDS * self.samples // share.settings.batch_size)
        return self.batches(replace(share, seed=share.seed + OTHER_DRAWS)), steps


def split(samples: Sequence[T], settings: Recover, seed: int) -> tuple[list[T], list[T]]:
    """Return the samples that are trained on, and those that are held out: none where nothing is evaluated.

    Raises:
        PruningError: If none would be left to train on.
    """
    if not settings.eval_every:
        return list(samples), []
    count = settings.held_out or min(MOST, max(1, len(samples) // SHARE))
    if count >= len(samples):
        raise PruningError(
            f"recovery: held_out: {count} of {len(samples)} samples leave none to train on; hold out fewer, or set "
            "eval_every to 0"
        )
    order = torch.randperm(len(samples), generator=sample_generator(seed, 0, HELD)).tolist()
    held = {*order[:count]}
    return (
        [sample for k, sample in enumerate(samples) if k not in held],
        [sample for k, sample in enumerate(samples) if k in held],
    )


def best_of(evaluations: Sequence[tuple[int, float]]) -> int | None:
    """Return the position of the first of the lowest losses; None if there are none."""
    losses = [loss for _, loss in evaluations]
    return losses.index(min(losses)) if losses else None


def is_over(evaluations: Sequence[tuple[int, float]], settings: Recover) -> bool:
    """Tell whether so many evaluations as `early_stop` says found no lower loss; those of the warm-up do not count."""
    best = best_of(evaluations)
    if settings.early_stop is None or best is None:
        return False
    since = [step for step, _ in evaluations[best + 1 :] if step > settings.warmup]
    return len(since) >= settings.early_stop
