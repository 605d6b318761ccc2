"""The oracle check: does a scheduler sample what a model knows? It costs no call of a network.

In the place of the model stands the exact answer for data that consist of one known sample x0. A sampler that reads
the model's predictions as they are meant shows it, at every timestep t, inputs ``a_t x0 + s_t noise`` with noise of
variance 1, and ends at x0. One that takes another prediction type, other betas or another direction for granted does
not.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from pruning.data.noise import answer, levels_at, num_train_timesteps, prediction_type
from pruning.errors import PruningError
from pruning.sampling.schedulers import lost_settings, same_noise
from pruning.sampling.steps import fresh_scheduler, run_steps, sample_generators

logger = logging.getLogger(__name__)

SHAPE = (2, 1, 64, 64)
"""Enough pixels that the standard deviation of their noise is known to 1 %."""

AT_START, ON_THE_WAY, AT_END = 0.5, 0.2, 0.05
"""What right samplers stay below: how far the amount of noise, of 1, is off at the first step, how much further later
(DDPM with a large variance in few steps: 0.16), and how far beyond twice the noise of timestep 0 the result is from x0
(root mean square)."""


def check_sampler(scheduler: Any, sampler: Any, num_steps: int) -> None:
    """Check that `sampler` ends where the model says, in `num_steps` steps.

    The scheduler with which the model was trained says where that is. Its own class is believed: where that goes
    astray (a single step from the wrong end) it is a warning.

    Raises:
        PruningError: If it cannot take the steps, draws noise that cannot be seeded, drops what the model was trained
            with, or does not end at x0.
    """
    name, own = type(sampler).__name__, type(scheduler).__name__
    _check_signal(scheduler, fresh_scheduler(sampler, num_steps), name)
    cleanest = levels_at(scheduler, 0)
    if cleanest is None and name != own:
        raise PruningError(
            f"the sampler {name} cannot be checked, for the model's own {own} has neither alphas_cumprod nor flow "
            "matching; sample with the model's own"
        )
    off, end = _walk(scheduler, sampler, num_steps)
    if cleanest is None:
        return
    (_, at_first), (t, at_worst) = off[0], max(off, key=lambda pair: pair[1])
    allowed = 2 * cleanest[1] + AT_END
    is_right = at_first <= AT_START and at_worst <= at_first + ON_THE_WAY and end <= allowed
    lost = lost_settings(scheduler, sampler)
    if is_right and same_noise(scheduler, sampler) and not lost:
        return
    if name == own:
        logger.warning(
            "%s: in %d step(s) it does not get where the model points (with a perfect model of one image it ends %.2g "
            "away from it, and the noise is off by %.2g at timestep %g); take more steps",
            *(name, num_steps, end, at_worst, t),
        )
        return
    dropped = ", ".join(f"{key} {value!r}" for key, value in lost.items())
    why = (
        f"it drops what the model was trained with ({dropped})" if lost else f"it goes another way than {own}"
    )
    raise PruningError(
        f"the sampler {name} does not fit the model: {why}. With a perfect model of one image it ends {end:.2g} away "
        f"from it (at most {allowed:.2g}), and the noise is off by {at_worst:.2g} at timestep {t:g}; leave it out, "
        f"take more steps than {num_steps}, or choose one that keeps all of this"
    )


def _check_signal(scheduler: Any, steps: Any, name: str) -> None:
    """Refuse to read x0 from a prediction of the noise where there is nothing but noise."""
    if not scheduler.config.get("rescale_betas_zero_snr") or prediction_type(scheduler) != "epsilon":
        return
    last = num_train_timesteps(scheduler) - 1
    if float(torch.as_tensor(steps.timesteps).max()) > last - 0.5:
        raise PruningError(
            f"the sampler {name} begins at timestep {last}, where a zero-terminal-SNR schedule "
            "(rescale_betas_zero_snr) has no signal and a model with prediction_type 'epsilon' tells nothing of the "
            "image (a division by zero); in scheduler_config.json set rescale_betas_zero_snr to false or "
            "timestep_spacing to 'leading', whichever the model was trained for"
        )


def _walk(scheduler: Any, sampler: Any, num_steps: int) -> tuple[list[tuple[float, float]], float]:
    """Return how the sampler goes with the exact answers; a PruningError says why it cannot.

    Returns:
        Each step's timestep and how far the amount of noise is off there (empty where the model's own scheduler says no
        noise levels), and the distance from x0 at the end, root mean square.
    """
    name, off = type(sampler).__name__, list[tuple[float, float]]()
    x0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def predict(x: Tensor, t: Tensor) -> Tensor:
        levels = levels_at(scheduler, float(t))
        if levels is None:
            return torch.zeros_like(x)
        signal, spread = levels
        off.append((float(t), abs(float((x - signal * x0).std()) - spread)))
        return answer(scheduler, x0, (x - signal * x0) / max(spread, 1e-6), signal, spread)

    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.random.get_rng_state()
        try:
            steps = fresh_scheduler(sampler, num_steps)
            end = run_steps(steps, predict, noise, sample_generators(torch.arange(SHAPE[0]), 0))
            finite = end.shape == x0.shape and bool(torch.isfinite(end).all())
            problem = "" if finite else f"it ends in NaN, infinity or another shape ({tuple(end.shape)})"
        except PruningError:
            raise
        except Exception as error:  # a step may need further arguments, tokens instead of numbers, …
            problem = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if not torch.equal(before, torch.random.get_rng_state()):
            problem = problem or "it draws noise from the global generator, which no seed by sample reaches"
    if problem:
        raise PruningError(
            f"the sampler {name} cannot sample here: {problem}; choose another, such as DDIMScheduler "
            "(FlowMatchEulerDiscreteScheduler for flow matching)"
        )
    return off, float((end - x0).square().mean().sqrt())
