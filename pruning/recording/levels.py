"""How much signal and how much noise a scheduler's sample holds at each step, as the scheduler itself says."""

from __future__ import annotations

import contextlib
import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """``x = signal * x0 + noise * eps``, in the scheduler's layout and before it scales what the model sees."""

    signal: float
    noise: float

    @property
    def size(self) -> float:
        """Root of the mean square of x, where x0 and eps have 1."""
        return (self.signal**2 + self.noise**2) ** 0.5


def as_number(t: Any) -> float | None:
    """Return a timestep as a number, that of the first entry where it has several; None where it has none."""
    if isinstance(t, Tensor):
        return float(t.flatten()[0]) if t.numel() else None
    with contextlib.suppress(TypeError, ValueError):
        return float(t)
    return None


def level_at(scheduler: Any, t: Any) -> Level | None:
    """Ask a copy of a scheduler what it makes of ones without noise and of noise without ones; None if it does not say.

    Args:
        scheduler: In the state in which the pipeline used it: its timesteps are set.
        t: Timestep as the pipeline gave it to the scheduler's step.
    """
    if isinstance(t, Tensor) and t.numel() > 1 and bool((t != t.flatten()[0]).any()):
        return None  # parts of the sample are at other steps
    asked = copy.copy(scheduler)  # what it keeps while it answers, such as an index, stays with the copy
    for name in ("_step_index", "_begin_index"):
        if hasattr(asked, name):
            setattr(asked, name, None)
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    with contextlib.suppress(Exception):  # each scheduler fails in its own way where it has no such law
        when = torch.as_tensor(t).reshape(-1)[:1].to(_device(asked))
        one, none = one.to(when.device), none.to(when.device)
        if hasattr(asked, "scale_noise"):
            pair = asked.scale_noise(one, when, none), asked.scale_noise(none, when, one)
        elif hasattr(asked, "add_noise"):
            pair = asked.add_noise(one, none, when), asked.add_noise(none, one, when)
        else:
            return None
        signal, noise = (float(value.flatten()[0]) for value in pair)
        if not math.isfinite(signal) or not math.isfinite(noise):
            return None
        is_reversed = bool(
            asked.config.get("invert_sigmas")
        )  # sigma is then the signal, and runs from 0 to 1
        return Level(noise, signal) if is_reversed else Level(signal, noise)
    return None


def _device(scheduler: Any) -> torch.device:
    times = getattr(scheduler, "timesteps", None)
    return times.device if isinstance(times, Tensor) else torch.device("cpu")
