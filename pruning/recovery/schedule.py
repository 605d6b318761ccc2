"""What the settings of a recovery run mean: the learning rate by step, and what two runs must share to be one."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from pruning.settings import Recover, knobs_of


def course(settings: Recover) -> dict[str, Any]:
    """Return the settings that two runs must share for one to be resumed as the other (JSON types).

    When to stop early does not change the course; with a constant learning rate the number of steps does not either, so
    that such a run can be prolonged.
    """
    free = {knob.key for knob in knobs_of(Recover) if knob.neutral} | {"enabled", "max_seconds"}
    if settings.schedule == "constant":
        free.add("steps")
    found = {**asdict(settings), "warmup_steps": settings.warmup}
    return {key: value for key, value in found.items() if key not in free}


def learning_rate_at(settings: Recover, step: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0).

    Linear warm-up, ``lr * (step + 1) / warmup``, then constant, or half a cosine down to 0 at ``steps``
    (Loshchilov and Hutter, arXiv 1608.03983, equation 5 with one period).
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
