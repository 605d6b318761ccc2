"""The pixel sampler."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from eval.classifier import load_classifier
from pruning.data.seeding import INITIAL, indexed_noise
from pruning.errors import PruningError
from pruning.models import bundled, load_denoiser, load_scheduler
from pruning.sampling import fresh_scheduler, sample, to_uint8
from tests.models import dit, unet2d

SETTINGS = {"num_steps": 3, "seed": 4, "batch_size": 2}


def test_rounding_by_hand():
    images = torch.tensor([-2.0, -1.0, -0.9999, 0.0, 0.004, 1.0, 3.0])
    assert to_uint8(images).tolist() == [0, 0, 0, 128, 128, 255, 255]
    assert to_uint8(torch.tensor([254.6 / 127.5 - 1])).tolist() == [255], "rounded, not truncated"


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(timestep_spacing="trailing"),
        DDPMScheduler(),
        EulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_images_do_not_depend_on_the_batch_or_the_order(scheduler):
    """Stochastic schedulers too: each sample has its own generator."""
    model = dit()
    together = sample(
        model, scheduler, sample_ids=[7, 3, 5], labels=[1, 2, 3], **{**SETTINGS, "batch_size": 3}
    )
    apart = sample(model, scheduler, sample_ids=[5, 7, 3], labels=[3, 1, 2], **{**SETTINGS, "batch_size": 1})
    assert together.shape == (3, 1, 8, 8)
    assert together.dtype == torch.uint8
    difference = together.int() - apart[[1, 2, 0]].int()
    assert int(difference.abs().max()) <= 1, "products of other shapes may round one level apart"
    assert len({tuple(image.flatten().tolist()) for image in together}) == 3


def test_ddim_by_hand():
    """One trailing DDIM step from pure noise: x0 = (x - sqrt(1 - abar) eps) / sqrt(abar)."""
    model = unet2d()
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, beta_end=0.001)
    found = sample(model, scheduler, sample_ids=[1], num_steps=1, seed=0, batch_size=1)
    x = indexed_noise([1], (1, 8, 8), 0, INITIAL)
    with torch.no_grad():
        eps = model(sample=x, timestep=torch.tensor([999]), return_dict=False)[0]
    abar = scheduler.alphas_cumprod[999]
    assert torch.equal(found, to_uint8((x - (1 - abar).sqrt() * eps) / abar.sqrt()))


def test_guidance():
    """Scale 0 is the null class alone; scale 1 the class alone."""
    model, scheduler = dit(), DDIMScheduler()
    common = {"sample_ids": [0, 1], **SETTINGS}
    unconditional = sample(model, scheduler, labels=[10, 10], **common)
    assert torch.equal(sample(model, scheduler, labels=[3, 4], guidance_scale=0.0, **common), unconditional)
    conditional = sample(model, scheduler, labels=[3, 4], **common)
    guided = sample(model, scheduler, labels=[3, 4], guidance_scale=3.0, **common)
    assert not torch.equal(conditional, unconditional)
    assert not torch.equal(guided, conditional)


def test_the_model_and_the_scheduler_come_back_as_they_were():
    model, scheduler = dit().train(), DDIMScheduler()
    model.transformer_blocks[0].norm1.eval()
    before = [module.training for module in model.modules()]
    sample(model, scheduler, sample_ids=[0], labels=[0], **SETTINGS)
    assert [module.training for module in model.modules()] == before
    assert scheduler.num_inference_steps is None


def test_half_precision_models_and_no_samples():
    model = unet2d().to(torch.bfloat16)
    assert sample(model, DDIMScheduler(), sample_ids=[0], **SETTINGS).shape == (1, 1, 8, 8)
    assert sample(model, DDIMScheduler(), sample_ids=[], **SETTINGS).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (dit, {}, "has 10 classes: give one label per sample"),
        (dit, {"labels": [1]}, "1 labels for 2 samples: give one label per sample"),
        (dit, {"labels": [1, 11]}, "labels go from 1 to 11; the model has 0 to 9"),
        (dit, {"labels": [1, -1]}, "labels go from -1 to 1"),
        (unet2d, {"labels": [1, 2]}, "UNet2DModel is not class-conditional; leave them out"),
        (unet2d, {"guidance_scale": 2.0}, "guidance_scale 2.0: UNet2DModel has no null class"),
        (unet2d, {"num_steps": 0}, "num_steps 0 and batch_size 2 must be at least 1"),
        (unet2d, {"batch_size": 0}, "num_steps 3 and batch_size 0 must be at least 1"),
        (unet2d, {"num_steps": 1001}, "scheduler DDIMScheduler cannot take 1001 steps"),
    ],
)
def test_bad_requests(build, changes: dict, message: str):
    with pytest.raises(PruningError, match=message):
        sample(build(), DDIMScheduler(), sample_ids=[0, 1], **{**SETTINGS, **changes})


def test_a_learned_variance_is_left_out():
    model, scheduler = dit(out_channels=2), DDPMScheduler(variance_type="learned_range")
    found = sample(model, scheduler, sample_ids=[0], labels=[1], **SETTINGS)
    plain = sample(model, DDPMScheduler(), sample_ids=[0], labels=[1], **SETTINGS)
    assert torch.equal(found, plain)


def test_noise_that_cannot_be_seeded_is_refused():
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(PruningError, match="stochastic_sampling draws from the global generator"):
        fresh_scheduler(scheduler, 3)


def test_a_model_without_a_scheduler_is_refused():
    with pytest.raises(
        PruningError, match=r"scheduler is None: give the one that the model was trained with"
    ):
        sample(unet2d(), None, sample_ids=[0, 1], **SETTINGS)


def test_nan_is_named():
    model = unet2d()
    with torch.no_grad():
        model.conv_out.bias.fill_(float("nan"))
    with pytest.raises(PruningError, match=r"NaN or infinity in the samples \[4, 5\]"):
        sample(model, DDIMScheduler(), sample_ids=[4, 5], **SETTINGS)


def test_the_bundled_dit_draws_the_digits_it_is_asked_for():
    """The whole chain on real weights: 40 samples, as the quickstart draws them but for 10 steps."""
    source = "bundled:models/digits-dit"
    labels = torch.arange(40) % 10
    images = sample(
        load_denoiser(source),
        load_scheduler(source),
        sample_ids=range(40),
        labels=labels,
        num_steps=10,
        seed=1,
        batch_size=40,
    )
    with torch.no_grad():
        guess = load_classifier(bundled("models/digits-classifier"))(images).argmax(1)
    assert float((guess == labels).double().mean()) >= 0.9
