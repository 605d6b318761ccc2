"""Units of every class: cut equals mask, saved equals loaded, predicted costs equal those of the cut model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from diffusers import AutoModel, DiffusionPipeline

from pruning.allocation import CostModel
from pruning.hook import install_hook
from pruning.surgery import apply_plan, mask_plan
from pruning.types import PRUNING_KEY, PrunableGroup, PruningPlan, config_hash, slices_of
from tests.family.zoo_setup import FIRST, assert_same, built, error, half, smaller, widths
from tests.zoo import ZOO, Draw, run

UNLOADABLE = {
    "transformer2d-pixart": "diffusers cannot load its own checkpoint of this config again",
}

UNCOUNTED = dict.fromkeys(
    ("kandinsky6_sr", "anyflow-far", "anyflow-far-clean"),
    "flex attention, whose products diffusers hides from counting",
)


@pytest.mark.parametrize("name", ZOO)
def test_cut_equals_mask_and_loads_again(name, tmp_path):
    model, dense = built(name)
    groups = widths(model)
    assert groups
    plan = PruningPlan(half(groups), base_hash=config_hash(model.config), **smaller(model))
    masked = run(ZOO[name], mask_plan(model, plan, groups))
    assert error(masked, dense) > 1e-4
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    pruned = run(ZOO[name], cut)
    assert_same(pruned, masked)

    if name not in UNLOADABLE:
        install_hook()
        for loaded in loaded_again(cut, str(tmp_path), every_way=name in FIRST):
            assert_same(run(ZOO[name], loaded.eval()), pruned, 2e-6)
            assert {n: p.shape for n, p in loaded.named_parameters()} == {
                n: p.shape for n, p in cut.named_parameters()
            }


class Around(DiffusionPipeline):
    """A pipeline of a denoiser alone."""

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser)


def loaded_again(cut: Any, folder: str, *, every_way: bool) -> Iterator[Any]:
    """Save a model, and yield it as loaded by its class; if asked, also by AutoModel, and as part of a pipeline."""
    Around(cut).save_pretrained(folder)
    yield type(cut).from_pretrained(f"{folder}/denoiser")
    if every_way:
        yield AutoModel.from_pretrained(f"{folder}/denoiser")
        yield Around.from_pretrained(folder).denoiser


@pytest.mark.parametrize("name", FIRST)
def test_a_cut_model_is_cut_again(name):
    model, _ = built(name)
    first = PruningPlan(half(widths(model)), **smaller(model))
    cut = apply_plan(copy.deepcopy(model), first, widths(model))
    groups = widths(cut)
    again = PruningPlan(kept=half(groups, seed=1))
    masked = run(ZOO[name], mask_plan(cut, again, groups))
    assert_same(run(ZOO[name], apply_plan(cut, again, groups)), masked)
    assert len(cut.config[PRUNING_KEY]["earlier_plans"]) == 1


@pytest.mark.parametrize("name", [name for name in FIRST if name not in UNCOUNTED])
def test_predicted_costs_are_those_of_the_cut_model(name):
    model, _ = built(name)
    groups, call = widths(model), ZOO[name].call(Draw(1))
    plan = PruningPlan(half(groups, seed=2), **smaller(model))
    cost = CostModel.trace(model, call, groups)
    slim = CostModel.trace(apply_plan(copy.deepcopy(model), plan, groups), call, [])
    assert cost.params(plan) == slim.params()
    assert cost.macs(plan) == pytest.approx(slim.macs(), rel=1e-3)
    if both_ways(groups):
        return
    removed = {group.name: len(plan.removed_units(group)) for group in groups}
    narrower = replace(plan, ranks={}, shared=())
    for measure, total in (("macs", cost.macs), ("params", cost.params)):
        dense, got = total(), total(narrower)
        units = cost.unit_costs(measure)
        linear = dense - sum(units[group] * count for group, count in removed.items())
        assert linear == pytest.approx(got, rel=1e-3)


def both_ways(groups: list[PrunableGroup]) -> bool:
    """Tell whether a weight is cut along both dimensions, or in a unit: its cost is then not linear in the units."""
    dims = {(part.path, part.dim) for group in groups for part in slices_of(group)}
    return len({path for path, _ in dims}) < len(dims) or any(group.lists for group in groups)
