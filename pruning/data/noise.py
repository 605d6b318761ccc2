"""Noised images and what the denoiser should answer, for every kind of prediction."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.errors import PruningError, shown

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def is_flow(scheduler: Any) -> bool:
    """Tell whether `scheduler` is a flow-matching one (by class, or by its ``prediction_type``)."""
    by_class = type(scheduler).__name__.startswith("FlowMatch")
    return by_class or scheduler.config.get("prediction_type") == "flow_prediction"


def num_train_timesteps(scheduler: Any) -> int:
    """Return the number of training timesteps of `scheduler`; none, or a config without one, is a PruningError."""
    if not hasattr(scheduler, "config"):
        raise PruningError(
            f"scheduler is {shown(scheduler)}: give the one that the model was trained with, such as diffusers' "
            "DDPMScheduler.from_pretrained(<pipeline>, subfolder='scheduler')"
        )
    count = scheduler.config.get("num_train_timesteps")
    if not isinstance(count, int) or count < 1:
        raise PruningError(
            f"scheduler {type(scheduler).__name__}: num_train_timesteps is {count!r}; expected at least 1"
        )
    return count


def noise_and_target(scheduler: Any, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise clean samples to timestep `t`, as the model sees them, and say what it should predict.

    With abar_t the cumulative alphas (Ho et al. 2020, eq. 4; v: Salimans and Ho 2022, appendix D)::

        x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise
        target = noise | sqrt(abar_t) noise - sqrt(1 - abar_t) x0 | x0

    and for flow matching (Lipman et al. 2022; Liu et al. 2022), sigma = (t + 1) / num_train_timesteps::

        x_t = (1 - sigma) x0 + sigma noise,   target = noise - x0

    Flow models are asked uniformly in the timestep that they are given, whatever the sampler's shift.

    Args:
        scheduler: Any diffusers scheduler with ``alphas_cumprod``, or a flow-matching one; not changed.
        x0: Clean samples (B, C, H, W).
        noise: Standard normal, same shape.
        t: int64 (B,) in ``[0, num_train_timesteps)``; 0 is the least noise.

    Returns:
        x_t (B, C, H, W); target (B, C, H, W); the timestep to hand to the model (B,), int64, or for
        flow matching float32 ``sigma * num_train_timesteps``.

    Raises:
        PruningError: For a scheduler or a prediction type that fits neither form.
    """
    total = num_train_timesteps(scheduler)
    if is_flow(scheduler):
        model_t = (t + 1).to(torch.float32)
        sigma = (model_t / total).to(x0)[:, None, None, None]
        return (1 - sigma) * x0 + sigma * noise, noise - x0, model_t
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        raise PruningError(
            f"scheduler {type(scheduler).__name__} has neither alphas_cumprod nor flow matching, so images cannot "
            "be noised with it; give the pipeline a DDPM, DDIM, Euler, DPM-Solver or flow-matching scheduler"
        )
    abar = cumulative.to(device=x0.device, dtype=torch.float64)[t.to(x0.device)]
    signal = abar.sqrt().to(x0.dtype)[:, None, None, None]
    spread = (1 - abar).sqrt().to(x0.dtype)[:, None, None, None]
    x_t = signal * x0 + spread * noise
    return x_t, answer(scheduler, x0, noise, signal, spread), t


def levels_at(scheduler: Any, t: float) -> tuple[float, float] | None:
    """Return a and s of ``x_t = a x0 + s noise``, or None where the scheduler has no ``alphas_cumprod`` and no flow.

    Args:
        scheduler: The scheduler that the model was trained with.
        t: From 0 to ``num_train_timesteps``, as the model is given it; it may lie between two.
    """
    if is_flow(scheduler):
        sigma = t / num_train_timesteps(scheduler)
        return 1 - sigma, sigma
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None:
        return None
    signal = float(np.interp(t, np.arange(len(cumulative)), cumulative.double().sqrt()))
    return signal, max(1 - signal**2, 0.0) ** 0.5


def answer(scheduler: Any, x0: Tensor, noise: Tensor, signal: Any, spread: Any) -> Tensor:
    """Return what is to be predicted of ``signal * x0 + spread * noise``."""
    answers = {
        "epsilon": noise,
        "v_prediction": signal * noise - spread * x0,
        "sample": x0,
        "flow_prediction": noise - x0,
    }
    return answers[prediction_type(scheduler)]


def prediction_type(scheduler: Any) -> str:
    """Return what a model of this scheduler predicts, one of `PREDICTIONS`; anything else is a PruningError."""
    said = "flow_prediction" if is_flow(scheduler) else scheduler.config.get("prediction_type", "epsilon")
    if said not in PREDICTIONS:
        raise PruningError(
            f"scheduler {type(scheduler).__name__}: prediction_type {said!r} is unknown; "
            f"valid: {', '.join(PREDICTIONS)}"
        )
    return said
