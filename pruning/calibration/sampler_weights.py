"""Timestep weights from the sampler: how much an error of the model at a timestep moves the sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pruning.data.noise import levels_at, num_train_timesteps, prediction_type
from pruning.errors import PruningError
from pruning.sampling import fresh_scheduler


def sampler_weights(scheduler: Any, buckets: int, num_steps: int) -> list[float]:
    """Return w_tau by timestep bucket from a sampler's `error_weights`.

    Errors of different steps add as squares, so a bucket weighs as much as its steps together.

    Args:
        scheduler: The sampler's diffusers scheduler; not changed.
        buckets: T; bucket 0 is the least noise.
        num_steps: Steps of the sampler, best a multiple of T.

    Returns:
        T numbers of mean 1, for ``timestep_weights=``.

    Raises:
        PruningError: If a bucket holds no step, or the scheduler is of no kind known here.
    """
    if buckets < 1:
        raise PruningError(f"sampler weights: {buckets} timestep buckets; there must be at least 1")
    total = num_train_timesteps(scheduler)
    times = fresh_scheduler(scheduler, num_steps).timesteps
    weights = error_weights(scheduler, times)
    if not bool(weights.isfinite().all()):
        raise PruningError(
            f"sampler weights: {type(scheduler).__name__} has no signal (or no noise) at timestep "
            f"{float(times[~weights.isfinite()][0]):g}, where an error of this prediction_type moves the sample "
            "without bound; take timestep_weights=uniform or obs_diff"
        )
    bucket = (times.cpu().double() * buckets / total).floor().long().clamp(0, buckets - 1)
    sums = torch.zeros(buckets, dtype=torch.float64).index_add_(0, bucket, weights)
    if not bool((sums > 0).all()):
        raise PruningError(
            f"sampler weights: no step of {num_steps} falls into timestep bucket {int((sums <= 0).nonzero()[0])} of "
            f"{buckets}; take more steps or fewer buckets"
        )
    return (sums / sums.mean()).tolist()


def error_weights(scheduler: Any, timesteps: Tensor) -> Tensor:
    """Return how much an error of the model at each step changes the sample, squared, float64 (S,).

    With ``x_t = alpha x0 + sigma eps``, a deterministic first-order step (DDIM, Euler) from t to t' gives ``alpha'
    x0_hat + sigma' eps_hat``. An error e of the prediction moves it by b e, where b is, by what the model predicts
    (Song et al. 2021, eq. 12; Salimans and Ho 2022, appendix D)::

        epsilon: sigma' - sigma alpha' / alpha         v: sigma' alpha - sigma alpha'
        sample:  alpha' - alpha sigma' / sigma         flow: sigma' - sigma

    The rest of the trajectory multiplies an error by ``1 / sqrt(alpha'^2 + sigma'^2)`` where data have zero mean and
    unit variance and the model is optimal, so a step weighs ``b^2 / (alpha'^2 + sigma'^2)``.

    Args:
        scheduler: The sampler's diffusers scheduler.
        timesteps: Its S timesteps, falling.

    Raises:
        PruningError: If the scheduler is of no kind known here.
    """
    levels = [levels_at(scheduler, float(t)) for t in timesteps]
    if None in levels:
        raise PruningError(
            f"scheduler {type(scheduler).__name__} has neither alphas_cumprod nor flow matching, so its error weights "
            "are not known; give timestep_weights as numbers"
        )
    alpha, sigma = torch.tensor(levels, dtype=torch.float64).unbind(1)
    end = torch.ones(1, dtype=torch.float64)
    next_alpha, next_sigma = torch.cat([alpha[1:], end]), torch.cat([sigma[1:], 0 * end])
    moved = {
        "epsilon": next_sigma - sigma * next_alpha / alpha,
        "v_prediction": next_sigma * alpha - sigma * next_alpha,
        "sample": next_alpha - alpha * next_sigma / sigma,
        "flow_prediction": next_sigma - sigma,
    }
    return moved[prediction_type(scheduler)].square() / (next_alpha.square() + next_sigma.square())
