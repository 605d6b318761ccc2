"""Noising, worked out by hand and against diffusers' own schedulers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from pruning.data import noise_and_target
from pruning.errors import PruningError

# betas 3/4: abar = 1/4, then 1/16
TWO_STEPS = {"num_train_timesteps": 2, "trained_betas": [0.75, 0.75]}
X0, NOISE = torch.full((2, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1), -1.0)
T = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ("epsilon", [-1.0, -1.0]),
        ("sample", [2.0, 2.0]),
        ("v_prediction", [0.5 * -1 - math.sqrt(0.75) * 2, 0.25 * -1 - math.sqrt(15 / 16) * 2]),
    ],
)
def test_by_hand(prediction: str, target: list[float]):
    scheduler = DDPMScheduler(**TWO_STEPS, prediction_type=prediction)
    x_t, found, model_t = noise_and_target(scheduler, X0, NOISE, T)
    expected = torch.tensor([0.5 * 2 - math.sqrt(0.75), 0.25 * 2 - math.sqrt(15 / 16)])
    torch.testing.assert_close(x_t.flatten(), expected)
    torch.testing.assert_close(found.flatten(), torch.tensor(target))
    assert torch.equal(model_t, T)


def test_flow_matching_by_hand():
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=4, shift=3.0)
    x_t, target, model_t = noise_and_target(scheduler, X0, NOISE, torch.tensor([0, 3]))
    torch.testing.assert_close(x_t.flatten(), torch.tensor([0.75 * 2 - 0.25, -1.0]))  # sigma 1/4 and 1
    torch.testing.assert_close(target.flatten(), torch.tensor([-3.0, -3.0]))
    assert model_t.tolist() == [1.0, 4.0]
    assert model_t.dtype == torch.float32


def test_a_multistep_scheduler_may_be_a_flow_one():
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    _, target, model_t = noise_and_target(scheduler, X0, NOISE, T)
    assert target.flatten().tolist() == [-3.0, -3.0]
    assert model_t.tolist() == [1.0, 2.0]


def test_agrees_with_diffusers():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 1, 4, 4, generator=generator)
    t = torch.tensor([0, 500, 999])
    ddpm = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    x_t, target, _ = noise_and_target(ddpm, x0, noise, t)
    torch.testing.assert_close(x_t, ddpm.add_noise(x0, noise, t))
    torch.testing.assert_close(target, ddpm.get_velocity(x0, noise, t))
    flow = FlowMatchEulerDiscreteScheduler()
    x_t, _, model_t = noise_and_target(flow, x0, noise, t)
    torch.testing.assert_close(x_t, flow.scale_noise(x0, model_t, noise))


def test_a_sigma_scheduler_gives_what_the_model_sees():
    """Euler adds noise at scale sigma and divides by sqrt(sigma^2 + 1) before the model: x_t is that quotient."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(1000)
    t = torch.tensor([400])
    x_t, _, _ = noise_and_target(scheduler, X0[:1], NOISE[:1], t)
    noisy = scheduler.add_noise(X0[:1], NOISE[:1], t)
    index = int((scheduler.timesteps == 400).nonzero())
    torch.testing.assert_close(x_t, noisy / (scheduler.sigmas[index] ** 2 + 1) ** 0.5)


def test_unknown_prediction_type():
    scheduler = DDPMScheduler(**TWO_STEPS, prediction_type="epsilon")
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(
        PruningError, match=r"prediction_type 'score' is unknown; valid: epsilon, v_prediction"
    ):
        noise_and_target(scheduler, X0, NOISE, T)


def test_scheduler_of_another_kind():
    scheduler = SimpleNamespace(config={"num_train_timesteps": 40})
    with pytest.raises(PruningError, match="neither alphas_cumprod nor flow matching"):
        noise_and_target(scheduler, X0, NOISE, T)


@pytest.mark.parametrize("count", [None, 0, "1000"])
def test_scheduler_without_timesteps(count: object):
    with pytest.raises(PruningError, match=f"num_train_timesteps is {count!r}; expected at least 1"):
        noise_and_target(SimpleNamespace(config={"num_train_timesteps": count}), X0, NOISE, T)
