"""The code that the documentation prints does what the documentation says."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AuraFlowTransformer2DModel

import tests.models
from pruning.calibration import calibrate
from pruning.checkpoint import load, save
from pruning.groups import HANDLERS, find_groups
from pruning.importance import CRITERIA, needs_of, score
from pruning.models import FAMILIES, families
from pruning.registry import Registry
from pruning.surgery import apply_plan, mask_plan
from tests.models import dit, run, unet2d
from tests.plans import random_plan
from tests.unit.calibration_setup import noised

DOCS = Path(__file__).resolve().parents[2] / "docs"
REGISTRIES: tuple[Registry[Any], ...] = (CRITERIA, HANDLERS, FAMILIES)


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    before = [dict(registry._entries) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.S | re.M)


def execute(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "docs", "exec"), names)
    return names


@pytest.mark.parametrize("make", [dit, unet2d])
def test_the_first_criterion_scores_every_kind(make):
    (code,) = blocks("first-criterion.md")
    execute(code, {})
    model = make()
    groups = find_groups(model, ["attention_heads", "ffn_channels", "resnet_channels"])
    needs = needs_of("activation", groups)
    stats = calibrate(model, groups, noised(model, 2, 2), needs=needs)
    scores = score(model, groups, stats, criterion="activation")
    assert all(bool((values > 0).all()) for values in scores.values.values())


def test_a_statistic_of_ones_own_is_gathered():
    (code,) = blocks("how-it-works.md")
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    names = execute(code, {"model": model, "groups": groups, "batches": noised(model, 2, 2)})
    sizes = names["stats"].get(groups[0].consumer_key, "sizes")
    assert sizes.shape == (names["stats"].meta["timestep_buckets"], groups[0].num_units)
    assert bool((sizes > 0).all())


def test_the_first_module_kind_is_cut_as_it_is_masked_and_loads_again(tmp_path):
    handler, family, row = blocks("first-module-kind.md")
    execute(handler, {})
    execute(family, vars(families))
    names = {**vars(tests.models), "AuraFlowTransformer2DModel": AuraFlowTransformer2DModel}
    model = execute(row, names)["auraflow"]()
    groups = find_groups(model, ["ffn_channels"])
    assert [group.num_units for group in groups] == [256] * 4  # two streams, then two layers of one
    plan = random_plan(model, ["ffn_channels", "attention_heads"], 0)
    cut = apply_plan(copy.deepcopy(model), plan)
    torch.testing.assert_close(run(cut), run(mask_plan(model, plan)), rtol=0, atol=1e-5)
    save(cut, tmp_path)
    assert torch.equal(run(load(tmp_path)), run(cut))


def test_the_readme_prunes_a_model_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, re.S | re.M)
    names = execute(code, {})
    macs = names["plan"].meta["macs"]
    assert macs["plan"] / macs["dense"] == pytest.approx(0.5, abs=0.01)
    again, _ = names["sp"].load("my-slim-dit")
    call = names["sp"].example_call(again, 2)
    assert torch.equal(run_call(again, call), run_call(names["model"], call))


def run_call(model: torch.nn.Module, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**call, return_dict=False)[0]
