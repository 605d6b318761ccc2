"""Scheduler configs that do not build are named by file, key, value and rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from diffusers import SchedulerMixin

from pruning.errors import PruningError
from pruning.models import load_scheduler
from pruning.models.schedulers import build_scheduler

CLASSES = sorted(
    name
    for name in dir(diffusers)
    if isinstance(found := getattr(diffusers, name), type)
    and issubclass(found, SchedulerMixin)
    and found is not SchedulerMixin
)


def load(folder: Path, name: str, config: dict[str, Any]) -> Any:
    (folder / "scheduler").mkdir(exist_ok=True)
    text = json.dumps({"_class_name": name, **config})
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    return load_scheduler(folder)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"beta_schedule": "cosine"},
            "beta_schedule is 'cosine', with which diffusers cannot build it: NotImplementedError: cosine is not",
        ),
        (
            {"num_train_timesteps": "1000"},
            "num_train_timesteps is '1000'; expected a whole number, written without quotes",
        ),
        ({"num_train_timesteps": 1000.5}, r"num_train_timesteps is 1000\.5; expected a whole number"),
        ({"num_train_timesteps": True}, "num_train_timesteps is True; expected a whole number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0; expected at least 1"),
        ({"num_train_timesteps": None}, "num_train_timesteps is None, with which diffusers cannot build it"),
        ({"beta_end": "0.02"}, r"beta_end is '0\.02'; expected a number, written without quotes"),
        ({"prediction_type": 3}, "prediction_type is 3; expected text"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr is 'yes'; expected true or false"),
        (
            {"trained_betas": [0.1, 0.2]},
            "trained_betas holds 2 values; expected as many as num_train_timesteps, 1000",
        ),
        (
            {"trained_betas": ["a"] * 1000},
            "trained_betas is \\['a', 'a', .*…, with which diffusers cannot build it: ValueError: too many dimensions",
        ),
        ({"trained_betas": [-0.5] * 1000}, r"make betas from -0\.5 to -0\.5; every beta must be from 0 to 1"),
        (
            {"beta_end": 2.0},
            r"beta_end 2\.0, beta_schedule 'linear' make betas from 0\.0001 to 2; every beta must be",
        ),
    ],
)
def test_configs_that_do_not_build(tmp_path: Path, name: str, config: dict[str, Any], message: str):
    whole = rf"model source '{tmp_path}': scheduler/scheduler_config.json \({name}\): .*{message}"
    with pytest.raises(PruningError, match=whole):
        load(tmp_path, name, config)


def test_a_config_with_two_faults_is_refused_all_the_same(tmp_path: Path):
    with pytest.raises(PruningError, match="with these values diffusers cannot build it: TypeError"):
        load(tmp_path, "DDIMScheduler", {"beta_start": None, "num_train_timesteps": None})


@pytest.mark.parametrize("name", CLASSES)
def test_what_diffusers_writes_is_read(name: str):
    """Every class of diffusers that has defaults, by its own saved config."""
    cls = getattr(diffusers, name)
    try:
        made = cls()
    except TypeError:
        pytest.skip(f"{name} has no defaults")
    config = json.loads(made.to_json_string())
    assert dict(build_scheduler(cls, config, "here").config) == dict(made.from_config(config).config)


def test_a_class_without_defaults_is_refused(tmp_path: Path):
    with pytest.raises(
        PruningError, match=r"with these values diffusers cannot build it: TypeError: .*num_vec_classes"
    ):
        load(tmp_path, "VQDiffusionScheduler", {})
