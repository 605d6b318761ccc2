"""Samples from whole pipelines: images, videos, sounds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AudioPipelineOutput,
    DDIMPipeline,
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FluxPipeline,
    ImagePipelineOutput,
    KandinskyV22Pipeline,
    LattePipeline,
    StableDiffusionPipeline,
    StableVideoDiffusionPipeline,
)
from torch import nn

from pruning.errors import PruningError
from pruning.models import call_parameters
from pruning.sampling import (
    PixelPipeline,
    batch_fault,
    check_arguments,
    pipeline_call,
    rehearse,
    sample,
    sample_pipeline,
    value_of,
)
from pruning.sampling.arguments import as_taken, shortened
from tests.models import dit, unet2d
from tests.unit.tiny_pipelines import (
    FLUX_CALL,
    LATTE_CALL,
    SoundPipeline,
    ddpm,
    dit_latent,
    flux,
    latte,
    stable_diffusion,
    stable_diffusion_xl,
)

STEPS = {"num_inference_steps": 2}
PROMPTS = [{"prompt": text} for text in ("a cat", "a red dog of a blue cat", "a dog")]


def build(name: str, folder: Path) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Return a pipeline, what three samples bring along, and what all are given."""
    classes = [{"class_labels": [k]} for k in (1, 2, 3)]
    pipelines: dict[str, Any] = {
        "sd": lambda: (stable_diffusion(folder), PROMPTS, STEPS),
        "sd-negative": lambda: (stable_diffusion(folder), PROMPTS, {**STEPS, "negative_prompt": "blue"}),
        "sdxl": lambda: (stable_diffusion_xl(folder), PROMPTS, STEPS),
        "flux": lambda: (flux(folder), PROMPTS, {**STEPS, **FLUX_CALL}),
        "dit": lambda: (dit_latent(), classes, STEPS),
        "ddpm": lambda: (ddpm(), [{}] * 3, STEPS),
        "pixels": lambda: (PixelPipeline(dit(), DDPMScheduler()), classes, STEPS),
        "latte": lambda: (latte(), PROMPTS, {**STEPS, **LATTE_CALL}),
        "sound": lambda: (SoundPipeline(unet2d(), DDIMScheduler()), [{}] * 3, STEPS),
    }
    return pipelines[name]()


SHAPES = {
    "sd": (3, 3, 16, 16),
    "sd-negative": (3, 3, 16, 16),
    "sdxl": (3, 3, 16, 16),
    "flux": (3, 3, 16, 24),
    "dit": (3, 3, 16, 16),
    "ddpm": (3, 1, 8, 8),
    "pixels": (3, 1, 8, 8),
    "latte": (3, 3, 3, 8, 8),
    "sound": (3, 1, 64),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_sample_depends_on_its_index_alone(name: str, tmp_path: Path):
    """Batches are made where they may be; the global generator is neither read nor moved."""
    pipeline, inputs, arguments = build(name, tmp_path)
    pair = [inputs[0], inputs[1]]
    fault = batch_fault(pipeline, pair, seed=4, arguments=arguments)
    assert (fault is None) == (name != "latte")
    before = torch.random.get_rng_state()
    together = sample_pipeline(
        pipeline, inputs, sample_ids=[3, 1, 8], seed=4, arguments=arguments, batch_size=1 if fault else 3
    )
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(1)
    alone = sample_pipeline(pipeline, inputs[2:], sample_ids=[8], seed=4, arguments=arguments, batch_size=2)
    assert together.shape == SHAPES[name]
    assert together.dtype == (torch.float32 if name == "sound" else torch.uint8)
    torch.testing.assert_close(
        together[2:].float(), alone.float(), atol=1e-4 if name == "sound" else 1, rtol=0
    )
    assert not torch.equal(together[0], together[1])
    other = sample_pipeline(pipeline, inputs[2:], sample_ids=[8], seed=5, arguments=arguments)
    assert not torch.equal(alone, other)


class Padded(SoundPipeline):
    """Its sounds tell how long the longest prompt of the call is."""

    def __call__(self, prompt: Any = None, generator: Any = None):
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return AudioPipelineOutput(audios=np.full((len(prompts), 8), max(map(len, prompts)) / 100))


def test_a_prompt_that_is_padded_to_the_longest_beside_it_is_sampled_alone():
    pipeline = Padded(unet2d(), DDIMScheduler())
    assert batch_fault(pipeline, PROMPTS[:2], seed=0) == "together they differ by 0.18"
    assert batch_fault(pipeline, PROMPTS[::2], seed=0) is None, "as long as each other"


def test_a_pipeline_that_takes_no_batch_is_asked_for_one_sample():
    class Single(SoundPipeline):
        def __call__(self, generator: Any = None, num_inference_steps: int = 3):
            return super().__call__(1, generator, num_inference_steps)

    pipeline = Single(unet2d(), DDIMScheduler())
    assert batch_fault(pipeline, [{}, {}], seed=0) == "Single makes one sample a call"
    assert sample_pipeline(pipeline, [{}, {}], sample_ids=[0, 1], seed=0).shape == (2, 1, 64)


def test_texts_for_all_samples_stand_beside_every_prompt(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    given = {"negative_prompt": "blue", "eta": 0.5}
    call = pipeline_call(pipeline, PROMPTS[:2], [0, 1], 0, given)
    assert call["prompt"] == ["a cat", "a red dog of a blue cat"]
    assert call["negative_prompt"] == ["blue", "blue"]
    assert call["eta"] == 0.5
    assert "batch_size" not in call
    assert [each.initial_seed() for each in call["generator"]] == [
        pipeline_call(pipeline, PROMPTS[:1], [i], 0, given)["generator"].initial_seed() for i in (0, 1)
    ]
    assert pipeline_call(pipeline, PROMPTS[:1], [0], 0, given)["negative_prompt"] == "blue"


def test_our_own_loop_gives_the_same_by_both_ways():
    model, scheduler = dit(), DDIMScheduler(timestep_spacing="trailing")
    plain = sample(model, scheduler, sample_ids=range(6), labels=range(6), num_steps=3, seed=2, batch_size=4)
    inputs = [{"class_labels": [k]} for k in range(6)]
    pipeline, arguments = PixelPipeline(model, scheduler), {"num_inference_steps": 3}
    found = sample_pipeline(pipeline, inputs, sample_ids=range(6), seed=2, arguments=arguments, batch_size=4)
    assert torch.equal(found, plain)
    default = sample_pipeline(pipeline, inputs[:1], sample_ids=[0], seed=2)
    twenty = sample_pipeline(
        pipeline, inputs[:1], sample_ids=[0], seed=2, arguments={"num_inference_steps": 20}
    )
    assert torch.equal(default, twenty)


def test_a_pixel_pipeline_is_called_like_one_of_diffusers():
    pipeline = PixelPipeline(unet2d(), DDPMScheduler())
    assert list(pipeline.components) == ["denoiser", "scheduler"]
    generators = [torch.Generator().manual_seed(k) for k in (1, 2)]
    found = pipeline(batch_size=2, num_inference_steps=2, generator=generators)
    assert isinstance(found, ImagePipelineOutput)
    assert found.images.shape == (2, 8, 8, 1)
    assert 0 <= found.images.min() < found.images.max() <= 1
    again = [torch.Generator().manual_seed(k) for k in (1, 2)]
    (latent,) = pipeline(
        batch_size=2, num_inference_steps=2, generator=again, output_type="latent", return_dict=False
    )
    np.testing.assert_array_equal((latent / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), found.images)
    alone = pipeline(num_inference_steps=2, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(alone.images, found.images[1:], atol=1e-6)


class Restless(DDIMPipeline):
    """Changes itself, its scheduler and its model's processors in a call, and draws from the global generator."""

    def __call__(self, batch_size: int = 1, num_inference_steps: int = 2):
        self.touched = True
        self.scheduler.history = [1]
        self.unet.mid_block.attentions[0].processor = object()
        return ImagePipelineOutput(images=torch.rand(batch_size, 4, 4, 3).numpy())


def test_a_pipeline_is_left_as_it_was():
    pipeline = Restless(unet2d(), DPMSolverMultistepScheduler())
    pipeline.set_progress_bar_config(desc="mine")
    attention = pipeline.unet.mid_block.attentions[0]
    own, processor = dict(vars(pipeline)), attention.processor
    state = copy.deepcopy(vars(pipeline.scheduler))
    found = sample_pipeline(pipeline, [{}, {}], sample_ids=[0, 1], seed=0)
    assert attention.processor is processor
    assert vars(pipeline) == own
    assert not torch.equal(found[0], found[1])
    assert vars(pipeline.scheduler).keys() == state.keys()
    assert torch.equal(sample_pipeline(pipeline, [{}], sample_ids=[1], seed=0), found[1:]), (
        "seeded all the same"
    )


def test_a_scheduler_that_was_used_before_makes_no_difference(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    pipeline.scheduler = DPMSolverMultistepScheduler()
    first = sample_pipeline(pipeline, PROMPTS[:1], sample_ids=[0], seed=0, arguments=STEPS)
    assert pipeline.scheduler.num_inference_steps is None
    sample_pipeline(pipeline, PROMPTS[:1], sample_ids=[1], seed=0, arguments={"num_inference_steps": 3})
    assert torch.equal(first, sample_pipeline(pipeline, PROMPTS[:1], sample_ids=[0], seed=0, arguments=STEPS))


def test_guidance_reaches_the_pipeline(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    strong, weak = (
        sample_pipeline(
            pipeline, PROMPTS[:1], sample_ids=[0], seed=0, arguments={**STEPS, "guidance_scale": scale}
        )
        for scale in (9.0, 1.0)
    )
    assert not torch.equal(strong, weak)


class Says(SoundPipeline):
    """Gives what it was told to."""

    output: Any = None

    def __call__(self) -> Any:
        return self.output


def says(output: Any) -> Says:
    pipeline = Says(unet2d(), DDIMScheduler())
    pipeline.output = output
    return pipeline


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            {"image_embeds": np.zeros((1, 4))},
            "Says gives image_embeds, none of images, image, frames, video, audios",
        ),
        ((np.zeros((1, 2, 2, 3)),), "Says gives tuple, none of images"),
        ({"images": np.zeros((2, 4, 4, 3))}, r"gives images of shape \(2, 4, 4, 3\) for 1 sample"),
        ({"images": np.zeros((1, 3, 5, 5))}, r"shape \(1, 3, 5, 5\) .* expected images \(B, H, W, C\)"),
        ({"images": np.full((1, 2, 2, 3), np.nan)}, r"NaN or infinity in the samples \[6\]"),
    ],
)
def test_what_is_no_sample_is_refused(output: Any, message: str):
    with pytest.raises(PruningError, match=message):
        sample_pipeline(says(output), [{}], sample_ids=[6], seed=0)


def test_one_video_without_an_axis_of_samples_is_no_batch_of_images():
    found = sample_pipeline(says({"video": np.zeros((5, 4, 6, 3))}), [{}], sample_ids=[0], seed=0)
    assert found.shape == (1, 5, 3, 4, 6)


@pytest.mark.parametrize(
    ("inputs", "changes", "message"),
    [
        (PROMPTS, {}, "3 inputs for 2 samples: give one per sample"),
        (PROMPTS[:2], {"batch_size": 0}, "batch_size 0 must be at least 1"),
        (
            PROMPTS[:2],
            {"arguments": {"guidance_scale": "high"}},
            r"StableDiffusionPipeline fails with \{'guidance_scale': 'high'.*: TypeError: ",
        ),
    ],
)
def test_bad_requests(inputs: list, changes: dict, message: str, tmp_path: Path):
    with pytest.raises(PruningError, match=message):
        sample_pipeline(
            stable_diffusion(tmp_path),
            inputs,
            **{"sample_ids": [0, 1], "seed": 0, "batch_size": 2, **changes},
        )


def test_a_rehearsal_is_one_sample_of_few_steps():
    steps: list[int] = []

    class Counts(SoundPipeline):
        def __call__(self, generator: Any = None, num_inference_steps: int = 3, timesteps: Any = None):
            steps.append(num_inference_steps)
            return super().__call__(1, generator, 2)

    pipeline = Counts(unet2d(), DDIMScheduler())
    for arguments in ({}, {"num_inference_steps": 1}, {"num_inference_steps": 50}, {"timesteps": [3, 2, 1]}):
        assert rehearse(pipeline, {}, seed=0, arguments=arguments).shape == (1, 1, 64)
    assert steps == [2, 1, 2, 3], "a list of all steps stays as it is"
    assert shortened(LattePipeline, {"height": 8}, 2) == {"height": 8, "num_inference_steps": 2}


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (
            FluxPipeline,
            {"heigth": 512},
            r"heigth \(512\) is no argument of FluxPipeline \(did you mean 'height'\?\)",
        ),
        (
            FluxPipeline,
            {"num_frames": 9},
            r"num_frames \(9\) is no argument of FluxPipeline.*; it takes .*height",
        ),
        (FluxPipeline, {"prompt": "a"}, r"prompt \('a'\) cannot be given: it comes from data.source"),
        (FluxPipeline, {"generator": 1}, "it is seeded by seed and the index of the sample"),
        (FluxPipeline, {"output_type": "pil"}, "it is set by the sampler, which measures"),
        (FluxPipeline, {"num_images_per_prompt": 2}, "it is set by the sampler; num_samples and batch_size"),
        (FluxPipeline, {"latents": [1]}, "it is drawn by the index of the sample"),
        (FluxPipeline, {"callback_on_step_end": "f"}, "it is a function"),
        (FluxPipeline, {"pooled_prompt_embeds": []}, "it is a tensor"),
        (StableVideoDiffusionPipeline, {}, "StableVideoDiffusionPipeline cannot do without image"),
        (KandinskyV22Pipeline, {}, "cannot do without image_embeds, negative_image_embeds"),
        (StableDiffusionPipeline, {"mask_image": 1}, "mask_image .1. is no argument"),
        (
            FluxPipeline,
            {"num_inference_steps": "20"},
            "num_inference_steps: '20' must be a whole number of at least 1",
        ),
        (
            FluxPipeline,
            {"num_inference_steps": 0},
            "num_inference_steps: 0 must be a whole number of at least 1",
        ),
        (FluxPipeline, {"guidance_scale": "high"}, "guidance_scale: 'high' must be a number"),
    ],
)
def test_arguments_are_held_against_the_signature(cls: type, arguments: dict, message: str):
    with pytest.raises(PruningError, match=message):
        check_arguments(cls, arguments, ("prompt", "class_labels"))


def test_lists_become_the_tuples_that_are_taken(tmp_path: Path):
    pipeline = stable_diffusion_xl(tmp_path)
    arguments = {"original_size": [8, 8], "timesteps": [600, 20]}
    found = as_taken(type(pipeline), arguments)
    assert found == {"original_size": (8, 8), "timesteps": [600, 20]}
    assert sample_pipeline(
        pipeline, PROMPTS[:1], sample_ids=[0], seed=0, arguments={**STEPS, "original_size": [8, 8]}
    ).shape == (1, 3, 16, 16)


def test_what_the_signature_has_passes():
    check_arguments(FluxPipeline, {"height": 512, "true_cfg_scale": 2.0, "negative_prompt": "x"}, ("prompt",))
    check_arguments(DiTPipeline, {"guidance_scale": 4}, ("prompt", "class_labels"))
    assert value_of(FluxPipeline, {}, "num_inference_steps") == 28
    assert value_of(FluxPipeline, {"num_inference_steps": 4}, "num_inference_steps") == 4
    assert value_of(DDIMPipeline, {}, "guidance_scale") is None
    assert "kwargs" not in call_parameters(StableDiffusionPipeline)


def test_modules_stay_in_their_modes(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    modes = [
        m.training
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for m in part.modules()
    ]
    sample_pipeline(pipeline, PROMPTS[:1], sample_ids=[0], seed=0, arguments=STEPS)
    assert modes == [
        m.training
        for part in pipeline.components.values()
        if isinstance(part, nn.Module)
        for m in part.modules()
    ]
