"""Samples from whole pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pruning.errors import PruningError
from pruning.sampling import sample_pipeline
from tests.unit.tiny_pipelines import ddpm, dit_latent, stable_diffusion, stable_diffusion_xl

SETTINGS = {"num_steps": 2, "seed": 4}


def build(name: str, folder: Path):
    pipelines = {
        "sd": lambda: (stable_diffusion(folder), {"prompts": ["a cat", "a dog", "a red cat"]}),
        "sdxl": lambda: (stable_diffusion_xl(folder), {"prompts": ["a cat", "a dog", "a red cat"]}),
        "dit": lambda: (dit_latent(), {"labels": torch.tensor([1, 2, 3])}),
        "ddpm": lambda: (ddpm(), {}),
    }
    return pipelines[name]()


@pytest.mark.parametrize("name", ["sd", "sdxl", "dit", "ddpm"])
def test_images_do_not_depend_on_the_batch(name: str, tmp_path: Path):
    pipeline, condition = build(name, tmp_path)
    together = sample_pipeline(pipeline, sample_ids=[3, 1, 8], batch_size=3, **condition, **SETTINGS)
    last = {key: values[2:] for key, values in condition.items()}
    alone = sample_pipeline(pipeline, sample_ids=[8], batch_size=2, **last, **SETTINGS)
    assert together.dtype == torch.uint8
    assert together.shape[0] == 3
    assert together.shape[1] == (1 if name == "ddpm" else 3)
    assert int((together[2:].int() - alone.int()).abs().max()) <= 1
    assert not torch.equal(together[0], together[1])


def test_guidance_reaches_the_pipeline(tmp_path: Path):
    pipeline = stable_diffusion(tmp_path)
    common = {"sample_ids": [0], "prompts": ["a cat"], "batch_size": 1, **SETTINGS}
    assert not torch.equal(
        sample_pipeline(pipeline, guidance_scale=9.0, **common), sample_pipeline(pipeline, **common)
    )


def test_the_progress_bar_comes_back():
    pipeline = ddpm()
    pipeline.set_progress_bar_config(desc="mine")
    sample_pipeline(pipeline, sample_ids=[0], batch_size=1, **SETTINGS)
    assert pipeline._progress_bar_config == {"desc": "mine"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sd", {}, "StableDiffusionPipeline needs prompts: give one per sample"),
        ("sd", {"prompts": ["a"]}, "1 prompts for 2 samples"),
        (
            "sd",
            {"prompts": ["a", "b"], "labels": [1, 2]},
            "labels were given, but StableDiffusionPipeline takes none",
        ),
        ("dit", {}, "DiTPipeline needs labels"),
        ("ddpm", {"prompts": ["a", "b"]}, "prompts were given, but DDPMPipeline takes none"),
        ("ddpm", {"guidance_scale": 3.0}, "guidance_scale 3.0: DDPMPipeline takes none"),
        ("ddpm", {"num_steps": 0}, "num_steps 0 and batch_size 2 must be at least 1"),
    ],
)
def test_bad_requests(name: str, changes: dict, message: str, tmp_path: Path):
    pipeline, _ = build(name, tmp_path)
    with pytest.raises(PruningError, match=message):
        sample_pipeline(pipeline, sample_ids=[0, 1], **{"batch_size": 2, **SETTINGS, **changes})


def test_nan_is_named():
    class Broken:
        def set_progress_bar_config(self, **settings: object) -> None: ...

        def __call__(self, num_inference_steps: int, output_type: str, generator: list, batch_size: int):
            return type("Output", (), {"images": np.full((batch_size, 2, 2, 3), np.nan)})

    with pytest.raises(PruningError, match=r"NaN or infinity in the samples \[6\]"):
        sample_pipeline(Broken(), sample_ids=[6], batch_size=1, **SETTINGS)
