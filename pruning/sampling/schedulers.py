"""Another sampler for a model: a scheduler of another class that keeps what the model was trained with."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin

from pruning.errors import PruningError

TRAINING = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""Settings that say how the model was trained. ``from_config`` drops them where they are a class's defaults."""

SAME = 1e-3
"""Difference of the signal, of 1, that rounding explains, and Euler's stand-in for a signal of 0."""


def scheduler_named(scheduler: Any, name: str | None) -> Any:
    """Return `scheduler`, or one of the diffusers class `name` with its settings.

    What the model was trained with is handed over even where it is the default of the one class and not of the other.
    A class that is none, or that cannot be built with these settings, is a PruningError.
    """
    if name is None:
        return scheduler
    cls: Any = getattr(diffusers, name, None) if name.isidentifier() else None
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise PruningError(f"{name!r} is no scheduler class of diffusers {diffusers.__version__}")
    config = scheduler.config
    build: Any = cls  # schedulers get `from_config` from a mixin of diffusers
    try:
        return build.from_config(config, **{key: config[key] for key in TRAINING if key in config})
    except Exception as error:  # each class has its own checks
        raise PruningError(
            f"{name} cannot be built with the settings of the model's {type(scheduler).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error


def lost_settings(scheduler: Any, sampler: Any) -> dict[str, Any]:
    """Return the settings of the model's training that the class of `sampler` does not take, with their values."""
    taken = inspect.signature(type(sampler).__init__).parameters
    return {key: scheduler.config[key] for key in TRAINING if scheduler.config.get(key) and key not in taken}


def same_noise(scheduler: Any, sampler: Any) -> bool:
    """Tell whether two schedulers have the same noise levels, as far as both of them say theirs."""
    ours, theirs = (getattr(each, "alphas_cumprod", None) for each in (scheduler, sampler))
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return True
    return ours.shape == theirs.shape and bool(((ours.sqrt() - theirs.sqrt()).abs() < SAME).all())
