"""``score.weighting: guided`` in a recipe: which half of a call is conditional, what is gathered, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from pruning.calibration import SamplingRun
from pruning.errors import PruningError
from pruning.importance import score
from pruning.recipe import Recipe
from pruning.stages.calibration import check_guidance, conditional_half, gather, source_for, wanted
from pruning.stages.run import Run
from tests.models import dit, unet2d, unet2d_condition
from tests.unit.test_stages_preflight import change
from tests.unit.tiny_pipelines import dit_latent, stable_diffusion


def asked(folder: Path, data: str = "digits", **values: Any) -> Recipe:
    """Return a recipe that ranks on guided rows of three sampling steps of four samples."""
    plain = Recipe(name="r", device="cpu", run_dir=str(folder / "run"))
    target = dataclasses.replace(plain.prune.target, macs=0.7)
    recipe = change(plain, model__source=str(folder / "model"), data__source=data, prune__target=target)
    recipe = change(recipe, calibrate__provider="sampling", calibrate__num_steps=3, calibrate__batch_size=2)
    recipe = change(recipe, calibrate__num_samples=4, calibrate__guidance_scale=3.0)
    return change(recipe, **{"score__criterion": "obs", "score__weighting": "guided", **values})


def bare(model: Any, folder: Path) -> None:
    model.save_pretrained(folder / "model" / "transformer")
    DDIMScheduler().save_pretrained(folder / "model" / "scheduler")


def captioned(folder: Path) -> str:
    """Write four RGB images with captions and labels, for training and for testing."""
    folder.mkdir()
    images = [Image.fromarray(np.full((16, 16, 3), 40 * k, dtype=np.uint8)) for k in range(4)]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "label": datasets.Value("int64"),
        }
    )
    rows = {"image": images, "caption": ["a red cat", "a blue dog"] * 2, "label": [0, 1, 2, 3]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


def calls(run: Run, argument: str) -> list[Tensor]:
    """Return what the sampler of the run hands to the model as `argument`, call by call."""
    found: list[Tensor] = []

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(kwargs[argument])

    shown = source_for(run, run.dense)
    assert isinstance(shown, SamplingRun)
    handle = run.dense.register_forward_pre_hook(see, with_kwargs=True)
    try:
        shown.generate()
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("latent", [False, True], ids=["pixels", "DiTPipeline"])
def test_the_conditional_half_has_the_classes(tmp_path, latent):
    if latent:
        dit_latent().save_pretrained(tmp_path / "model")
    else:
        bare(dit(sample_size=16), tmp_path)
    run = Run(asked(tmp_path, captioned(tmp_path / "images") if latent else "digits"))
    check_guidance(run)
    conditional, empty = conditional_half(run), 1000 if latent else 10
    labels = calls(run, "class_labels")
    assert [tuple(label.shape) for label in labels] == [(4,)] * 6  # 2 batches of 2 samples, 3 steps
    for label in labels:
        halves = label.chunk(2)
        assert (halves[1 - conditional] == empty).all()
        assert (halves[conditional] != empty).all()


def test_the_conditional_half_has_the_prompts(tmp_path):
    stable_diffusion(tmp_path).save_pretrained(tmp_path / "model")
    run = Run(asked(tmp_path, captioned(tmp_path / "images")))
    check_guidance(run)
    for text in calls(run, "encoder_hidden_states"):
        halves = text.chunk(2)
        empty, prompts = halves[1 - conditional_half(run)], halves[conditional_half(run)]
        assert torch.equal(empty[0], empty[1])  # the empty prompt, twice
        assert not torch.equal(prompts[0], prompts[1])


def test_a_recipe_gathers_and_ranks_on_guided_rows(tmp_path):
    bare(dit(sample_size=16), tmp_path)
    run = Run(asked(tmp_path))
    assert wanted(run).variants == ("guided",)
    groups = run.groups
    stats = gather(run, run.dense, groups, wanted(run))
    assert stats.meta["guidance"] == {"scale": 3.0, "conditional": 0}
    for group in groups:
        both, mixed = (stats.get(group.consumer, f"row_weight{suffix}").sum() for suffix in ("", "@guided"))
        assert float(both) == 2 * float(mixed)
    weights = dict(run.dense.named_parameters())
    guided = score(weights, groups, stats, criterion="obs", weighting="guided")
    plain = score(weights, groups, stats, criterion="obs", weighting="off")
    assert guided.meta["weighted_groups"] == len(groups)
    name = groups[0].name
    assert not torch.allclose(guided.values[name], plain.values[name])


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (
            lambda: unet2d(sample_size=16, num_class_embeds=10),
            {},
            r"score.weighting: 'guided' mixes .* UNet2DModel '.*' has no unconditional one",
        ),
        (
            lambda: unet2d_condition(sample_size=16, time_cond_proj_dim=6),
            {},
            "is told its guidance as a number",
        ),
        (
            lambda: dit(sample_size=16),
            {"score__criterion": "magnitude"},
            "the criterion 'magnitude' does not judge [a-z_]+ by rows alone",
        ),
        (
            lambda: dit(sample_size=16),
            {"score__criterion": "sink_mass"},
            "the criterion 'sink_mass' does not judge attention_heads by rows alone",
        ),
        (
            lambda: dit(sample_size=16),
            {"score__criterion": "probe_obs"},
            "the criterion 'probe_obs' does not judge [a-z_]+ by rows alone; take one that does, such as obs",
        ),
    ],
)
def test_what_cannot_be_guided_is_refused_before_the_work(tmp_path, model, values, message):
    bare(model(), tmp_path)
    with pytest.raises(PruningError, match=message):
        check_guidance(Run(asked(tmp_path, **values)))


@pytest.mark.parametrize("criterion", ["obs", "energy", "fluctuation", "flap", "wanda", "sink_influence"])
def test_criteria_of_rows_can_be_guided(tmp_path, criterion):
    bare(dit(sample_size=16), tmp_path)
    check_guidance(Run(asked(tmp_path, score__criterion=criterion)))


def test_preflight_asks(tmp_path):
    from pruning.stages import preflight

    bare(dit(sample_size=16), tmp_path)
    recipe = asked(tmp_path, score__criterion="magnitude", calibrate__timestep_buckets=3)
    with pytest.raises(PruningError, match=r"'magnitude' does not judge [a-z_]+ by rows alone"):
        preflight.preflight(Run(recipe), [])
