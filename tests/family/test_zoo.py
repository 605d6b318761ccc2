"""The table of tiny models is complete, and each of its models answers to what it is given."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any

import diffusers.models.transformers
import diffusers.models.unets
import pytest
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from tests import zoo
from tests.zoo import NOT_DENOISERS, ZOO, Tiny, build, run

TIMELESS = {
    "amused": "it predicts masked tokens",
    "amused-sampled": "it predicts masked tokens",
    "dreamlite-transformer": "a part of a UNet whose other blocks are told the time",
    "transformer-temporal": "a part of a UNet whose other blocks are told the time",
    "transformer2d": "a part of a UNet whose other blocks are told the time",
    "wan_animate2": "the pass that fills the cache sets the time",
    "wan_animate2_no_image": "the pass that fills the cache sets the time",
}
"""Entries that the time does not change, and why."""

TIMES = re.compile(r"t|(\w+_)?(time|timesteps?|timestep_ratio|sigma)(_r)?")
"""Names of arguments that are times."""

LARGEST = 5_000_000
"""Parameters; some classes have embeddings of a fixed width."""


def _model_classes() -> set[str]:
    """Return the names of all model classes of the packages of denoisers."""
    found = set()
    for package in (diffusers.models.transformers, diffusers.models.unets):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, cls in inspect.getmembers(module, inspect.isclass):
                if issubclass(cls, ModelMixin) and cls.__module__ == module.__name__:
                    found.add(name)
    return found


def test_every_class_has_an_entry_or_a_reason() -> None:
    told = {tiny.cls for tiny in ZOO.values()}
    assert _model_classes() == told | set(NOT_DENOISERS)
    assert not told & set(NOT_DENOISERS)


def test_names_are_taken_once() -> None:
    names = [
        name
        for info in pkgutil.iter_modules(zoo.__path__)
        if info.name != "base"
        for name in importlib.import_module(f"{zoo.__name__}.{info.name}").MODELS
    ]
    assert len(names) == len(set(names))


@pytest.fixture(scope="module", params=sorted(ZOO))
def entry(request: pytest.FixtureRequest) -> tuple[str, Tiny, nn.Module, Tensor]:
    """Return an entry's name and description, its model, and what that puts out."""
    tiny = ZOO[request.param]
    model = build(tiny)
    return request.param, tiny, model, run(tiny, model)


Entry = tuple[str, Tiny, nn.Module, Tensor]


def test_output_is_of_ordinary_size(entry: Entry) -> None:
    *_, output = entry
    assert output.isfinite().all()
    assert 1e-3 < output.abs().max() < 100


def test_model_is_small(entry: Entry) -> None:
    _, _, model, _ = entry
    assert sum(parameter.numel() for parameter in model.parameters()) < LARGEST


def test_output_is_the_same_every_time(entry: Entry) -> None:
    _, tiny, model, output = entry
    assert torch.equal(run(tiny, model), output)


def test_output_depends_on_the_input(entry: Entry) -> None:
    _, tiny, model, output = entry
    assert (run(tiny, model, seed=2) - output).abs().max() > 1e-3


def test_output_depends_on_the_time(entry: Entry) -> None:
    name, tiny, model, output = entry
    later = Tiny(tiny.cls, tiny.config, lambda draw: _other_times(tiny.call(draw)))
    change = (run(later, model) - output).abs().max()
    assert (change > 1e-4) == (name not in TIMELESS)


def _other_times(call: dict[str, Any]) -> dict[str, Any]:
    times = {key: call[key] for key in call if TIMES.fullmatch(key)}
    return call | {key: (time / 2).to(time.dtype) for key, time in times.items()}
