"""Rehearsals: a pipeline runs as it did, with something else in its denoisers' place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruning.recording.axes import Axes
from pruning.recording.watching import Answer, Call, SamplingStep

Rehearse = Callable[[Answer], list[SamplingStep]]
"""(answer in the denoisers' place) -> the sampling steps of a run with it."""


@dataclass(frozen=True)
class Learned:
    """What one watched run showed, as far as the check needs it.

    Attributes:
        steps: The run's sampling steps, with outputs.
        inputs: Batch axes of the arguments by denoiser.
        outputs: Batch axes of the answers.
    """

    steps: Sequence[SamplingStep]
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]


class Stand:
    """Stands in for the denoisers of a run: each call is answered in the form of the same call of the true run.

    Args:
        steps: Of the true run, with outputs.
        make: (position of the step, call, the true call) -> the answer, as a tuple.
    """

    def __init__(
        self, steps: Sequence[SamplingStep], make: Callable[[int, Call, Call], tuple[Any, ...]]
    ) -> None:
        self._steps, self._make = steps, make
        self._counted: Counter[int] = Counter()

    def __call__(self, position: int, call: Call) -> Any:
        """Answer a call at a step."""
        position = min(position, len(self._steps) - 1)
        calls = self._steps[position].calls
        true = calls[min(self._counted[position], len(calls) - 1)]
        self._counted[position] += 1
        return true.form(self._make(position, call, true))


def rehearsal(learned: Learned) -> Stand:
    """Return what answers with what the true run answered, whatever is asked."""
    return Stand(learned.steps, lambda position, call, true: true.output)
