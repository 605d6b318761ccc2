"""Sampler weights against errors that are put into real samplers of an optimal model."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from pruning.calibration import sampler_weights
from pruning.calibration.sampler_weights import error_weights
from pruning.calibration.step import timestep_weights
from pruning.errors import PruningError

STEPS, BUCKETS = 200, 4


def optimal(scheduler, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Prediction of the optimal model for data of zero mean and unit variance."""
    if type(scheduler).__name__.startswith("Flow"):
        sigma = float(t) / 1000
        return x * (2 * sigma - 1) / ((1 - sigma) ** 2 + sigma**2)
    signal = float(scheduler.alphas_cumprod[int(t)])
    by_type = {"epsilon": (1 - signal) ** 0.5 * x, "sample": signal**0.5 * x, "v_prediction": 0 * x}
    return by_type[scheduler.config.prediction_type]


def final(scheduler, moved: int | None) -> float:
    """Sample with an error of 1 in the prediction of one step; everything is linear."""
    scheduler.set_timesteps(STEPS)
    x = torch.ones(1, dtype=torch.float64)
    for k, t in enumerate(scheduler.timesteps):
        prediction = optimal(scheduler, x, t) + (1.0 if k == moved else 0.0)
        x = scheduler.step(prediction, t, x, return_dict=False)[0].double()
    return float(x)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
        DDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction", clip_sample=False),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=["epsilon", "v", "flow", "shifted-flow"],
)
def test_weights_are_the_squared_shift_of_the_sample(scheduler) -> None:
    undisturbed = final(scheduler, None)
    shifts = torch.tensor([final(scheduler, k) - undisturbed for k in range(STEPS)]).double().square()
    bucket = (scheduler.timesteps.double() * BUCKETS / 1000).floor().long().clamp(0, BUCKETS - 1)
    expected = torch.zeros(BUCKETS).double().index_add_(0, bucket, shifts)
    got = sampler_weights(scheduler, BUCKETS, STEPS)
    assert got == pytest.approx((expected / expected.mean()).tolist(), rel=0.08)


def test_a_scheduler_without_signal_at_the_end_is_refused() -> None:
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(PruningError, match=r"DDIMScheduler has no signal .* at timestep 999"):
        sampler_weights(scheduler, 4, 20)
    with pytest.raises(PruningError, match="0 timestep buckets"):
        sampler_weights(scheduler, 0, 20)


def test_one_step_a_bucket_by_hand() -> None:
    # Flow, sigma = 1, 1/2 and then 0. First step: b = -1/2, after which alpha' = sigma' = 1/2: 1/4 / (1/2) = 1/2.
    # Second step: b = -1/2, after which alpha' = 1, sigma' = 0: 1/4.
    scheduler = FlowMatchEulerDiscreteScheduler()
    sigmas = torch.tensor([1000.0, 500.0])
    assert error_weights(scheduler, sigmas).tolist() == pytest.approx([1 / 2, 1 / 4])
    # Noise is predicted; alpha^2 = 0.36 at t = 500 and 0.64 at t = 0, so that b = 0.6 - 0.8 * 0.8 / 0.6 = -7/15, and
    # then 0 - 0.6 / 0.8 = -3/4.
    ddim = DDIMScheduler()
    ddim.alphas_cumprod = torch.cat([torch.full((500,), 0.64), torch.full((500,), 0.36)])
    got = error_weights(ddim, torch.tensor([500, 0]))
    assert got.tolist() == pytest.approx([(7 / 15) ** 2, (3 / 4) ** 2], rel=1e-6)


def test_they_are_timestep_weights() -> None:
    weights = sampler_weights(EulerDiscreteScheduler(), 8, 40)
    assert timestep_weights(weights, 8).tolist() == weights
    assert sum(weights) == pytest.approx(8)
    assert weights == sorted(weights)  # noise is predicted: errors at high noise move the sample most
    samples = sampler_weights(DDIMScheduler(prediction_type="sample"), 8, 40)
    assert samples == sorted(samples, reverse=True)


def test_mistakes_are_named() -> None:
    with pytest.raises(PruningError, match="no step of 3 falls into timestep bucket 1 of 8; take more steps"):
        sampler_weights(DDIMScheduler(), 8, 3)
    with pytest.raises(PruningError, match="scheduler is None: give the one that the model was trained with"):
        sampler_weights(None, 8, 40)
    plain = DDIMScheduler()
    del plain.alphas_cumprod
    with pytest.raises(
        PruningError, match="has neither alphas_cumprod nor flow matching, so its error weights are not"
    ):
        error_weights(plain, torch.tensor([500, 0]))
    with pytest.raises(
        PruningError, match="prediction_type 'x' is unknown; valid: epsilon, v_prediction, sample, flow"
    ):
        sampler_weights(_changed(DDIMScheduler, prediction_type="x"), 2, 8)


def _changed(kind, **config):
    scheduler = kind()
    scheduler.register_to_config(**config)
    return scheduler
