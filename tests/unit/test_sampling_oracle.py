"""Every scheduler of diffusers either samples what the model knows, or is refused before the work."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    RePaintScheduler,
    ScoreSdeVeScheduler,
)

from eval.classifier import load_classifier
from pruning.errors import PruningError
from pruning.models import bundled, load_denoiser, load_scheduler
from pruning.sampling import check_sampler, sample, scheduler_named
from tests.unit.test_models_schedulers import CLASSES

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
OWN: dict[str, Any] = {
    "epsilon": DDPMScheduler(),
    "v": DDIMScheduler(prediction_type="v_prediction"),
    "sample": DDIMScheduler(prediction_type="sample", clip_sample=False),
    "scaled": PNDMScheduler(skip_prk_steps=True, steps_offset=1, **SCALED),
    "zero snr": DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}

PLAIN = {"DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler", "TCDScheduler"}
PLAIN |= {"DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "LCMScheduler", "UniPCMultistepScheduler"}
BETAS = PLAIN | {"DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "HeunDiscreteScheduler"}
BETAS |= {"LMSDiscreteScheduler", "SASolverScheduler"}
NOISE = BETAS | {
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
}
ACCEPTED = {
    "epsilon": NOISE | {"PNDMScheduler"},
    "v": NOISE | {"PNDMScheduler"},
    "sample": BETAS,
    "scaled": NOISE | {"PNDMScheduler"},
    "zero snr": PLAIN | {"EulerAncestralDiscreteScheduler"},
    "flow": {
        "FlowMapEulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "LTXEulerAncestralRFScheduler",
    },
}


@pytest.mark.parametrize("kind", OWN)
def test_every_scheduler_of_diffusers_is_right_or_refused(kind: str):
    accepted = set()
    for name in CLASSES:
        try:
            check_sampler(OWN[kind], scheduler_named(OWN[kind], name), 10)
        except PruningError:
            continue
        accepted.add(name)
    assert accepted == ACCEPTED[kind] & set(CLASSES)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("epsilon", "NoSuchScheduler", "'NoSuchScheduler' is no scheduler class of diffusers"),
        ("epsilon", "UNet2DModel", "'UNet2DModel' is no scheduler class of diffusers"),
        (
            "v",
            "FlowMatchEulerDiscreteScheduler",
            "drops what the model was trained with .*prediction_type 'v_prediction'",
        ),
        (
            "epsilon",
            "IPNDMScheduler",
            r"drops what the model was trained with \(beta_start 0\.0001, .* it ends .* away",
        ),
        (
            "v",
            "DDIMInverseScheduler",
            "DDIMInverseScheduler does not fit the model: it goes another way than DDIMScheduler",
        ),
        ("zero snr", "LMSDiscreteScheduler", r"trained with \(rescale_betas_zero_snr True\)"),
        (
            "epsilon",
            "UnCLIPScheduler",
            "UnCLIPScheduler cannot be built with the settings of the model's DDPMScheduler",
        ),
        (
            "epsilon",
            "VQDiffusionScheduler",
            "VQDiffusionScheduler cannot be built with the settings .*num_vec_classes",
        ),
        ("v", "FlowMatchLCMScheduler", r"drops what the model was trained with \(beta_start"),
        ("epsilon", "RePaintScheduler", "RePaintScheduler cannot sample here: TypeError: .*original_image"),
        (
            "epsilon",
            "ScoreSdeVeScheduler",
            "cannot sample here: AttributeError: .*no attribute 'step'; choose another",
        ),
        ("epsilon", "KarrasVeScheduler", "KarrasVeScheduler cannot sample here: TypeError: .*sample_hat"),
        ("epsilon", "EDMEulerScheduler", "EDMEulerScheduler does not fit the model: it drops"),
        (
            "sample",
            "EulerAncestralDiscreteScheduler",
            "cannot sample here: NotImplementedError: prediction_type",
        ),
        ("flow", "UniPCMultistepScheduler", "UniPCMultistepScheduler does not fit the model"),
    ],
)
def test_refusals_say_why(kind: str, name: str, message: str):
    with pytest.raises(PruningError, match=message):
        check_sampler(OWN[kind], scheduler_named(OWN[kind], name), 20)


def test_training_settings_are_handed_over_where_they_are_one_class_s_defaults():
    """``from_config`` alone gives Heun its own betas, 0.00085 to 0.012."""
    named = scheduler_named(DDPMScheduler(), "HeunDiscreteScheduler")
    assert (named.config.beta_start, named.config.beta_end) == (0.0001, 0.02)
    torch.testing.assert_close(named.alphas_cumprod, DDPMScheduler().alphas_cumprod)
    assert scheduler_named(OWN["v"], None) is OWN["v"]


@pytest.mark.parametrize("cls", [DDIMScheduler, EulerDiscreteScheduler])
def test_noise_alone_says_nothing_to_a_model_that_predicts_noise(cls: Any):
    made = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(
        PruningError, match=r"begins at timestep 999, .* \(a division by zero\); in scheduler_config.json"
    ):
        check_sampler(cls(**made), cls(**made), 20)
    leading = cls(**{**made, "timestep_spacing": "leading"})
    check_sampler(leading, leading, 20)
    velocity = cls(**made, prediction_type="v_prediction")
    check_sampler(velocity, velocity, 20)


def test_the_model_s_own_scheduler_is_believed(caplog: pytest.LogCaptureFixture):
    for own in (CMStochasticIterativeScheduler(), EDMEulerScheduler(), *OWN.values()):
        check_sampler(own, own, 10)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        check_sampler(DDIMScheduler(), DDIMScheduler(), 1)
    assert "DDIMScheduler: in 1 step(s) it does not get where the model points" in caplog.text
    with pytest.raises(PruningError, match="has neither alphas_cumprod nor flow matching; sample with the"):
        check_sampler(CMStochasticIterativeScheduler(), DDIMScheduler(), 10)
    for own in (RePaintScheduler(), ScoreSdeVeScheduler()):
        with pytest.raises(PruningError, match=r"cannot sample here: (Type|Attribute)Error"):
            check_sampler(own, own, 10)


def test_few_steps_of_another_sampler_are_refused():
    with pytest.raises(PruningError, match="leave it out, take more steps than 1, or choose"):
        check_sampler(DDPMScheduler(), scheduler_named(DDPMScheduler(), "DDIMScheduler"), 1)
    with pytest.raises(PruningError, match="cannot take 1001 steps"):
        check_sampler(DDPMScheduler(), scheduler_named(DDPMScheduler(), "DDIMScheduler"), 1001)


def test_unseeded_noise_is_refused_and_the_global_generator_stays():
    class Loose(DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True, **options):
            (found, *_) = super().step(model_output, timestep, sample, return_dict=False)
            return (found + 0 * torch.randn(1),)

    before = torch.random.get_rng_state()
    with pytest.raises(
        PruningError, match="draws noise from the global generator, which no seed by sample reaches"
    ):
        check_sampler(DDIMScheduler(), Loose(), 10)
    check_sampler(DDPMScheduler(), DDPMScheduler(), 10)
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_inverse_scheduler_of_the_model_s_own_is_said(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        check_sampler(DDIMInverseScheduler(), DDIMInverseScheduler(), 20)
    assert "does not get where the model points" in caplog.text


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "UniPCMultistepScheduler", "DDPMScheduler"])
def test_accepted_samplers_draw_the_digits_that_are_asked_for(name: str):
    source, labels = "bundled:models/digits-dit", torch.arange(40) % 10
    own = load_scheduler(source)
    sampler = scheduler_named(own, name)
    check_sampler(own, sampler, 10)
    common = {"sample_ids": range(40), "labels": labels, "num_steps": 10, "seed": 1, "batch_size": 40}
    images = sample(load_denoiser(source), sampler, **common)
    with torch.no_grad():
        guess = load_classifier(bundled("models/digits-classifier"))(images).argmax(1)
    assert float((guess == labels).double().mean()) >= 0.85
