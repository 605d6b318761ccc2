"""Schedulers from their configs, with errors that name the key at fault."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SchedulerMixin

from pruning.errors import PruningError, shown
from pruning.settings.section import fits, type_words


def build_scheduler(cls: Any, config: Mapping[str, Any], where: str) -> SchedulerMixin:
    """Return a scheduler of a class of diffusers by its config, as read from JSON from the file `where`.

    Raises:
        PruningError: If a value has another type than the class's default, if the class cannot be built, or if what
            it builds is no noise schedule over ``num_train_timesteps``; with file, key, value and rule.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    where = f"{where} ({cls.__name__})"
    for key in sorted(defaults.keys() & config.keys()):
        if expected := _expected(config[key], defaults[key]):
            raise PruningError(f"{where}: {key} is {shown(config[key])}; expected {expected}")
    try:
        scheduler = cls.from_config(config)
    except Exception as error:  # each class has its own checks, and arithmetic that fails in its own way
        culprit = _culprit(cls, config, defaults)
        said = f"{culprit} is {shown(config[culprit])}, with which" if culprit else "with these values"
        reason = str(error).splitlines()[0]
        raise PruningError(
            f"{where}: {said} diffusers cannot build it: {type(error).__name__}: {reason}"
        ) from error
    _check_schedule(scheduler, where)
    return scheduler


def _expected(value: Any, default: Any) -> str | None:
    """Return in words what a value should be if its type is not that of the default; None stands for no value."""
    kind = type(default)
    if value is None or kind not in (bool, int, float, str) or fits(value, kind):
        return None
    return type_words(kind) + (", written without quotes" if isinstance(value, str) else "")


def _culprit(cls: Any, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """Return the one key whose default value lets the class be built, or None."""
    for key in sorted(defaults.keys() & config.keys()):
        try:
            cls.from_config({**config, key: defaults[key]})
        except Exception:  # another key is at fault
            continue
        return key
    return None


def _check_schedule(scheduler: Any, where: str) -> None:
    """Raise PruningError unless there is a beta from 0 to 1 for each of at least one training timestep."""
    config, betas = scheduler.config, getattr(scheduler, "betas", None)
    total = config.get("num_train_timesteps")
    if total is not None and total < 1:
        raise PruningError(f"{where}: num_train_timesteps is {total}; expected at least 1")
    if total is None or not isinstance(betas, torch.Tensor):
        return
    given = config.get("trained_betas") is not None
    if given and len(betas) != total:
        raise PruningError(
            f"{where}: trained_betas holds {len(betas)} values; expected as many as num_train_timesteps, {total}"
        )
    if not bool(((betas >= 0) & (betas <= 1)).all()):
        keys = ("trained_betas",) if given else ("beta_start", "beta_end", "beta_schedule")
        said = ", ".join(f"{key} {shown(config.get(key))}" for key in keys)
        raise PruningError(
            f"{where}: {said} make betas from {float(betas.min()):g} to {float(betas.max()):g}; every beta must be "
            "from 0 to 1"
        )
