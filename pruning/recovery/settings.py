"""The settings of a recovery run: checked all at once, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pruning.errors import PruningError

SCHEDULES = ("cosine", "constant")
WEIGHTINGS = ("uniform", "min_snr")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class RecoverySettings:
    """What decides the course of a recovery run; `pruning.recovery.recover` documents the fields."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    distill_weight: float
    label_dropout: float | None
    ema_decay: float
    grad_clip: float | None
    loss_weighting: str
    gradient_accumulation: int
    mixed_precision: str | None
    checkpoint_every: int
    keep_checkpoints: int
    max_seconds: float | None
    seed: int

    def check(self) -> None:
        """Raise one PruningError that names every setting which is out of its range."""
        rules = (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("steps", self.steps * self.batch_size < 2**32, "less than 2^32 images over all steps"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "positive and finite"),
            ("warmup_steps", 0 <= self.warmup_steps <= self.steps, f"in [0, steps={self.steps}]"),
            ("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            ("distill_weight", 0 <= self.distill_weight <= 1, "in [0, 1]"),
            (
                "label_dropout",
                self.label_dropout is None or 0 <= self.label_dropout < 1,
                "in [0, 1), or null",
            ),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
            (
                "grad_clip",
                self.grad_clip is None or 0 < self.grad_clip < math.inf,
                "positive, or null for no clipping",
            ),
            ("loss_weighting", self.loss_weighting in WEIGHTINGS, f"one of {', '.join(WEIGHTINGS)}"),
            ("gradient_accumulation", self.gradient_accumulation >= 1, "at least 1"),
            (
                "mixed_precision",
                self.mixed_precision is None or self.mixed_precision in PRECISIONS,
                f"one of {', '.join(PRECISIONS)}, or null for what `accelerate` is set to",
            ),
            ("checkpoint_every", self.checkpoint_every >= 0, "at least 0 (0: only at the end)"),
            ("keep_checkpoints", self.keep_checkpoints >= 1, "at least 1"),
            (
                "max_seconds",
                self.max_seconds is None or self.max_seconds > 0,
                "positive, or null for no limit",
            ),
        )
        wrong = [f"{name}={getattr(self, name)!r} must be {rule}" for name, good, rule in rules if not good]
        if wrong:
            raise PruningError("recovery: " + "; ".join(wrong))

    def course(self) -> dict[str, Any]:
        """Return the settings that two runs must share for one to be resumed as the other (JSON types).

        How often to save and when to stop early do not change the course; with a constant learning rate the
        number of steps does not either, so that such a run can be prolonged.
        """
        course = asdict(self)
        for name in ("checkpoint_every", "keep_checkpoints", "max_seconds"):
            del course[name]
        if self.schedule == "constant":
            del course["steps"]
        return course


def learning_rate_at(settings: RecoverySettings, step: int) -> float:
    """Return the learning rate of optimiser step `step` (from 0).

    Linear warm-up, ``lr * (step + 1) / warmup``, then constant, or half a cosine down to 0 at ``steps``
    (Loshchilov and Hutter, arXiv 1608.03983, equation 5 with one period).
    """
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
