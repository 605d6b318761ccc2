"""What a denoiser's raw answer should be, as functions of the clean sample, the noise and the level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pruning.recording.levels import Level
from pruning.recording.placements import Placement


@dataclass(frozen=True)
class Map:
    """What a pipeline makes of a denoiser's raw answer at one step: ``model_output = alpha * F + beta * x``.

    Attributes:
        alpha: Factor of the answer.
        beta: Factor of the scheduler's sample.
        place: Where the model output is in the answer of one row, with scale 1.
    """

    alpha: float
    beta: float
    place: Placement


Kind = str
KINDS: dict[Kind, Callable[[Tensor, Tensor, Level], Tensor]] = {
    "flow_prediction": lambda x0, noise, level: noise - x0,
    "reverse_flow_prediction": lambda x0, noise, level: x0 - noise,
    "epsilon": lambda x0, noise, level: noise,
    "v_prediction": lambda x0, noise, level: (level.signal * noise - level.noise * x0) / level.size,
    "sample": lambda x0, noise, level: x0,
}
"""What a model output may stand for, as functions of x0, the noise and the level."""


@dataclass(frozen=True)
class Target:
    """What the denoiser's raw answer should be, known because the oracle check passed.

    Attributes:
        kind: One of `KINDS`.
        maps: By position of the sampling step, then by slot.
    """

    kind: Kind
    maps: tuple[tuple[Map, ...], ...]


def raw_answer(map_: Map, template: Any, model_output: Tensor, x: Tensor) -> Any:
    """Return the raw answer of one row, in the form of `template`, of which the pipeline makes `model_output`."""
    return map_.place.put(template, (model_output - map_.beta * x) / map_.alpha)
