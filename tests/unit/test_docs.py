"""The code that the documentation prints does what the documentation says."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.calibration import calibrate
from pruning.checkpoint import load, save
from pruning.data import ImageData
from pruning.groups import HANDLERS, KINDS, find_groups
from pruning.importance import CRITERIA, needs_of, score
from pruning.models import FAMILIES
from pruning.recording import record
from pruning.registry import Registry
from pruning.surgery import apply_plan, mask_plan
from pruning.types import PruningPlan
from tests.family.zoo_setup import assert_same, error, half
from tests.models import dit, unet2d
from tests.pipelines import PIPELINES
from tests.unit.calibration_setup import noised
from tests.unit.tiny_pipelines import stable_diffusion
from tests.zoo import ZOO, build
from tests.zoo import run as run_tiny

DOCS = Path(__file__).resolve().parents[2] / "docs"
REGISTRIES: tuple[Registry[Any], ...] = (CRITERIA, HANDLERS, KINDS, FAMILIES)


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


def test_a_model_that_stays_in_its_files_is_measured_and_cut(tmp_path, monkeypatch):
    (code,) = blocks("large-models.md")
    tiny = PIPELINES["flux"]
    monkeypatch.chdir(tmp_path)
    tiny.build().save_pretrained("flux")
    record(tiny.build(), tiny.inputs, "calls", call={**tiny.call, "num_inference_steps": 8}, points=8)
    names = execute(code, {})
    assert (tmp_path / "stats" / "stats.json").is_file()
    assert not [group for group in names["groups"] if group.kind == "blocks"]
    assert [*names["changes"].changed], "nothing was refitted"
    macs = names["plan"].meta["macs"]
    assert macs["plan"] / macs["dense"] == pytest.approx(0.75, abs=0.05)
    again, dense = load("slim"), load("flux/transformer")
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in dense.parameters())


def test_the_first_module_kind_is_cut_as_it_is_masked_and_loads_again(tmp_path):
    (handler,) = blocks("first-module-kind.md")
    execute(handler, {})
    tiny = ZOO["rfd4_proteina"]
    model = build(tiny)
    groups = find_groups(model, ["triangle_channels"])
    assert groups
    plan = PruningPlan(kept=half(groups))
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    masked = run_tiny(tiny, mask_plan(model, plan, groups))
    assert_same(run_tiny(tiny, cut), masked)
    assert error(masked, run_tiny(tiny, model)) > 1e-5
    save(cut, tmp_path)
    assert torch.equal(run_tiny(tiny, load(tmp_path)), run_tiny(tiny, cut))


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


def test_a_pipeline_is_recorded_cut_and_trained_back_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, of_images = blocks("recording.md")
    assert "steps=1000, batch_size=16" in code
    assert "steps=1000" in of_images
    pipeline = stable_diffusion(tmp_path)
    prompts = ["a red cat", "a blue dog"]
    few = code.replace("steps=1000, batch_size=16", "steps=2, batch_size=4")
    names = execute(few, {"pipeline": pipeline, "prompts": prompts})
    macs = names["plan"].meta["macs"]
    assert macs["plan"] / macs["dense"] == pytest.approx(0.8, abs=0.02)
    assert len(names["calls"].rows) == 2 * 8 * 2  # samples, points, branches
    again, _ = names["sp"].load("my-slim-model")
    call = names["calls"].example("unet", 2)
    assert torch.equal(run_call(again, call), run_call(names["slim"], call))
    assert not torch.equal(run_call(again, call), run_call(names["model"], call))
    shape, texts = (3, 16, 16), ["a red cat", "a blue dog"]
    data = ImageData("noise", shape, 2, lambda i: torch.zeros(shape), None, texts.__getitem__)
    few = of_images.replace("steps=1000", "steps=2, batch_size=4, checkpoint_every=0").replace(
        '"calls"', '"images"'
    )
    before = names["slim"].conv_in.weight.clone()
    names = execute(few, {**names, "data": data, "pipeline": pipeline})
    assert not torch.equal(names["slim"].conv_in.weight, before)
