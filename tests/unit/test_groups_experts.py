"""Experts, by hidden channels and as a whole: cut equals mask, reload equals saved, sizes fall as asked."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.cost import count_macs
from pruning.allocation import CostModel, allocate, prunable
from pruning.allocation.budget import sizes
from pruning.checkpoint import load, save
from pruning.errors import PruningError
from pruning.groups import HANDLERS, KINDS, discover
from pruning.groups.experts import mixture_at, mixtures
from pruning.hook import install_hook
from pruning.models.outputs import with_tuple
from pruning.settings import Prune, Target
from pruning.surgery import apply_plan, mask_plan, reshape
from pruning.surgery.experts import barred
from pruning.types import LENGTH, PRUNING_KEY, PrunableGroup, PruningPlan, config_hash, config_of
from tests.family.zoo_setup import assert_same, widths
from tests.plans import random_plan
from tests.zoo import ZOO, Draw, Tiny, build, run

TINY = ZOO["nucleusmoe"]
LIST, STACK = "hidream", "nucleusmoe"
EXPERTS = {"experts"}


def stacks(model: nn.Module) -> list[PrunableGroup]:
    find = HANDLERS["experts"].find
    return [group for path, module in model.named_modules() for group in find(path, module, model)]


def test_every_layer_of_experts_is_a_group() -> None:
    groups = stacks(build(TINY))
    assert [group.module for group in groups] == [
        f"transformer_blocks.{i}.img_mlp.experts" for i in (1, 2, 3)
    ]
    assert {(group.kind, group.num_units, group.unit_size) for group in groups} == {("ffn_channels", 40, 1)}
    assert {len(group.consumers) for group in groups} == {TINY.config["num_experts"]}
    assert not stacks(build(ZOO["nucleusmoe_dense"]))


def test_cut_equals_mask_and_reload_equals_saved(tmp_path: Path) -> None:
    model = build(TINY)
    groups = stacks(model)
    kept = {group.name: tuple(range(i, 40, 2 + i)) for i, group in enumerate(groups)}
    plan = PruningPlan(kept=kept, base_hash=config_hash(model.config))  # type: ignore[arg-type]
    masked = run(TINY, mask_plan(model, plan, groups))
    assert (masked - run(TINY, model)).abs().max() > 1e-3
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    pruned = run(TINY, cut)
    assert (pruned - masked).abs().max() < 1e-5
    experts = cut.get_submodule(groups[0].module)
    assert experts.down_proj.shape[1] == experts.gate_up_proj.shape[2] / 2 == 20  # type: ignore[union-attr]
    assert experts.moe_intermediate_dim == 20
    install_hook()
    save(cut, tmp_path)
    assert torch.equal(run(TINY, load(tmp_path)), pruned)


def with_config(name: str, **changes: Any) -> Tiny:
    tiny = ZOO[name]
    return Tiny(tiny.cls, {**tiny.config, **changes}, tiny.call)


def without(group: PrunableGroup, *units: int) -> dict[str, tuple[int, ...]]:
    return {group.name: tuple(unit for unit in range(group.num_units) if unit not in units)}


@pytest.mark.parametrize(
    ("name", "layers", "least"), [("hidream", 6, 2), ("hidream_masked", 6, 1), ("nucleusmoe", 3, 2)]
)
def test_whole_experts_are_units_of_which_as_many_stay_as_a_token_needs(
    name: str, layers: int, least: int
) -> None:
    groups = list(discover(build(ZOO[name]), EXPERTS))
    assert len(groups) == layers
    for group in groups:
        assert (group.kind, group.num_units, group.min_units) == (
            "experts",
            4 if layers == 6 else 3,
            least,
        )
        assert not group.consumed_by
        assert not any(
            group.holds(f"{group.module}.{shared}") for shared in ("shared_experts", "shared_expert")
        )
        assert list(sizes(group, Prune(round_to=64, min_units=1))) == list(
            range(group.num_units, least - 1, -1)
        )


@pytest.mark.parametrize(
    "tiny",
    [
        with_config("hidream", num_activated_experts=4),
        with_config("nucleusmoe", capacity_factors=2.5),
        ZOO["nucleusmoe_dense"],
    ],
    ids=["top-all", "room-for-all", "dense"],
)
def test_nothing_can_go_where_every_expert_is_needed(tiny: Tiny) -> None:
    assert not list(discover(build(tiny), EXPERTS))


def test_a_layer_that_keeps_more_of_its_experts_is_not_taken_for_one_that_is_understood() -> None:
    layer = build(ZOO[LIST]).get_submodule("double_stream_blocks.0.block.ff_i")
    assert mixture_at("", layer) is not None
    layer.gate.register_buffer("correction", torch.zeros(4))  # type: ignore[union-attr]
    assert mixture_at("", layer) is None
    del layer.gate.correction  # type: ignore[union-attr]
    del layer.gate.top_k, layer.num_activated_experts  # type: ignore[union-attr]
    assert mixture_at("", layer) is None


def hidream_layer(x: Tensor, layer: Any, removed: list[int]) -> Tensor:
    """Compute a layer of HiDream whose router's logits of some experts are minus infinity, token by token."""
    logits = x @ layer.gate.weight.T
    logits[:, removed] = -torch.inf
    weights, chosen = logits.softmax(-1).topk(layer.gate.top_k)
    rows = [
        sum(w * layer.experts[int(e)](token) for w, e in zip(ws, es, strict=True))
        for token, ws, es in zip(x, weights, chosen, strict=True)
    ]
    return torch.stack(rows) + layer.shared_experts(x)


@torch.no_grad()
def test_the_router_of_a_list_chooses_among_those_that_stay() -> None:
    model = build(ZOO[LIST])
    group = next(discover(model, EXPERTS))
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    expected = hidream_layer(x.flatten(0, 1), model.get_submodule(group.module), [0, 2]).view_as(x)
    plan = PruningPlan(kept=without(group, 0, 2))
    masked, cut = mask_plan(model, plan, [group]), apply_plan(model, plan, [group])
    torch.testing.assert_close(masked.get_submodule(group.module)(x), expected)
    torch.testing.assert_close(cut.get_submodule(group.module)(x), expected)


def nucleus_layer(x: Tensor, timestep: Tensor, layer: Any, kept: list[int]) -> Tensor:
    """Compute a layer of Nucleus-Image of some of its experts, which take the tokens of a sample as they want them."""
    router = torch.cat([timestep[:, None].expand_as(x), x], -1) @ layer.gate.weight[kept].T
    scores = router.sigmoid() if layer.use_sigmoid else router.softmax(-1)
    room = max(1, math.ceil(layer.capacity_factor * x.shape[1] / len(kept)))
    gates = torch.zeros_like(scores)  # (B, S, K)
    chosen = scores.topk(room, dim=1).indices
    gates.scatter_(1, chosen, scores.gather(1, chosen))
    gates = gates / (gates.sum(-1, keepdim=True) + 1e-12) * layer.route_scale
    out = layer.shared_expert(x)
    for place, expert in enumerate(kept):
        gate, up = (x @ layer.experts.gate_up_proj[expert]).chunk(2, -1)
        out = out + gates[..., place, None] * ((F.silu(gate) * up) @ layer.experts.down_proj[expert])
    return out


@torch.no_grad()
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("room", [1.0, 1.1, 2.0])
def test_experts_that_choose_have_the_room_of_all(room: float, sigmoid: bool) -> None:
    model = build(with_config(STACK, num_experts=7, capacity_factors=room, use_sigmoid=sigmoid))
    group = next(discover(model, EXPERTS))
    dense = model.get_submodule(group.module)
    plan = PruningPlan(kept=without(group, 0, 4))
    masked = mask_plan(model, plan, [group]).get_submodule(group.module)
    cut = apply_plan(copy.deepcopy(model), plan, [group]).get_submodule(group.module)
    generator = torch.Generator().manual_seed(0)
    for tokens in (3, 5, 20, 35):
        x, timestep = torch.randn(2, tokens, 48, generator=generator), torch.randn(2, 48, generator=generator)
        expected = nucleus_layer(x, timestep, dense, [1, 2, 3, 5, 6])
        torch.testing.assert_close(masked(x, x, timestep), expected)
        torch.testing.assert_close(cut(x, x, timestep), expected)


@pytest.mark.parametrize("name", [LIST, STACK])
def test_as_many_left_in_every_layer_is_a_stock_config(name: str, tmp_path: Path) -> None:
    model = build(ZOO[name])
    groups = list(discover(model, EXPERTS))
    plan = PruningPlan(
        kept={k: v for i, group in enumerate(groups) for k, v in without(group, i % 3).items()}
    )
    cut = apply_plan(model, plan, groups)
    field = {"hidream": "num_routed_experts", "nucleusmoe": "num_experts"}[name]
    assert PRUNING_KEY not in cut.config
    assert config_of(cut)[field] == ZOO[name].config[field] - 1
    cut.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(cut).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert torch.equal(run(ZOO[name], loaded), run(ZOO[name], cut))


@pytest.mark.parametrize("name", [LIST, STACK])
def test_layers_may_keep_different_numbers(name: str, tmp_path: Path) -> None:
    model = build(ZOO[name])
    groups = list(discover(model, EXPERTS))
    plan = PruningPlan(kept=without(groups[1], 1))
    masked = run(ZOO[name], mask_plan(model, plan, groups))
    cut = apply_plan(model, plan, groups)
    pruned = run(ZOO[name], cut)
    assert_same(pruned, masked)
    assert {*cut.config[PRUNING_KEY]["modules"]} <= {
        f"{groups[1].module}{part}" for part in ("", ".gate", ".experts")
    }
    install_hook()
    save(cut, tmp_path)
    assert torch.equal(run(ZOO[name], type(cut).from_pretrained(tmp_path)), pruned)  # type: ignore[attr-defined]
    again = list(discover(cut, EXPERTS))
    rest = PruningPlan(
        kept={
            k: v
            for group in again
            for k, v in without(group, 0).items()
            if group.num_units > 2 + (name == LIST)
        }
    )
    assert PRUNING_KEY not in apply_plan(cut, rest, again).config  # now all have as many


def test_experts_and_their_channels_go_together(tmp_path: Path) -> None:
    model = build(ZOO[LIST])
    groups = widths(model)
    path = "double_stream_blocks.0.block.ff_i.experts"
    channels = {g.module: g for g in groups if g.kind == "ffn_channels"}
    expert = next(g for g in groups if g.lists == (path,))
    plan = PruningPlan(
        kept={
            **without(expert, 0, 2),
            channels[f"{path}.0"].name: (1,),  # of an expert that goes
            channels[f"{path}.1"].name: tuple(range(5)),
            channels[f"{path}.3"].name: tuple(range(9)),
        }
    )
    assert {group.module for group in plan.cuts(groups)} == {expert.module, f"{path}.1", f"{path}.3"}
    masked = run(ZOO[LIST], mask_plan(model, plan, groups))
    cost = CostModel.trace(model, ZOO[LIST].call(Draw(1)), groups)
    cut = apply_plan(model, plan, groups)
    assert_same(run(ZOO[LIST], cut), masked)
    assert [item.w2.in_features for item in cut.get_submodule(path)] == [5, 9]  # type: ignore[union-attr]
    assert cost.params(plan) == sum(p.numel() for p in cut.parameters())
    install_hook()
    save(cut, tmp_path)
    assert torch.equal(run(ZOO[LIST], load(tmp_path)), run(ZOO[LIST], cut))


def test_a_plan_below_what_a_token_needs_is_refused() -> None:
    model = build(ZOO[LIST])
    group = next(discover(model, EXPERTS))
    plan = PruningPlan(kept={group.name: (1,)})
    for do in (apply_plan, mask_plan):
        with pytest.raises(PruningError, match=r"keeps 1 of 4 units .* sends each token to 2 .* at least 2"):
            do(model, plan, [group])


def recorded(**changes: Any) -> dict[str, Any]:
    """Return the entry of a model with one expert less in one layer, with other values of that layer's parts."""
    model = build(ZOO[LIST])
    group = next(discover(model, EXPERTS))
    entry = copy.deepcopy(
        dict(apply_plan(model, PruningPlan(kept=without(group, 1)), [group]).config[PRUNING_KEY])
    )
    modules = {path: copy.deepcopy(dict(record)) for path, record in entry["modules"].items()}
    for name, value in changes.items():
        if name == LENGTH:
            modules[f"{group.module}.experts"]["attributes"] = {LENGTH: value}
        elif name == "n_routed_experts":
            modules[f"{group.module}.gate"]["attributes"] = {name: value}
        else:
            modules[f"{group.module}.gate"]["parameters"] = {"weight": value}
    return {**entry, "modules": modules}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({LENGTH: 0}, "must be an integer in 1..4"),
        ({LENGTH: 5}, "must be an integer in 1..4"),
        ({LENGTH: 2}, "contradict each other"),
        ({"n_routed_experts": 2}, "contradict each other"),
        ({"weight": [2, 32]}, "contradict each other"),
    ],
)
def test_a_record_of_experts_is_not_trusted(change: dict[str, Any], words: str) -> None:
    fresh = build(ZOO[LIST])
    reshape(copy.deepcopy(fresh), recorded())
    with pytest.raises(PruningError, match=words):
        reshape(fresh, recorded(**change))


def test_fewer_experts_than_a_token_needs_are_refused_in_a_record() -> None:
    fresh = build(ZOO[LIST])
    few = recorded(**{LENGTH: 1, "n_routed_experts": 1, "weight": [1, 32]})
    with pytest.raises(PruningError, match=r"1 of 4 units of .*:experts' are left, and at least 2 must be"):
        reshape(fresh, few)


@pytest.mark.parametrize("form", [{"ranks": {"3.w1": 1}}, {"shared": {"3": "0"}}, {"shared": {"0": "3"}}])
def test_a_removed_expert_takes_no_smaller_form(form: dict[str, dict[str, Any]]) -> None:
    entry, fresh = recorded(), build(ZOO[LIST])
    experts = next(
        path for path, record in entry["modules"].items() if LENGTH in record.get("attributes", {})
    )

    def there(value: Any) -> Any:
        return f"{experts}.{value}" if isinstance(value, str) else value

    for name, found in form.items():
        entry[name] = {there(path): there(value) for path, value in found.items()}
    with pytest.raises(PruningError, match=r"experts\.3.*' is no module|no other serves, found"):
        reshape(fresh, entry)


@pytest.mark.parametrize("name", [LIST, STACK])
def test_work_goes_to_the_experts_that_stay(name: str) -> None:
    tiny = with_config(STACK, num_experts=5, capacity_factors=1.0) if name == STACK else ZOO[name]
    model, call = build(tiny), tiny.call(Draw(1))
    groups = list(discover(model, EXPERTS))
    cost = CostModel.trace(model, call, groups)
    plan = PruningPlan(kept={k: v for group in groups for k, v in without(group, 1, 2).items()})
    slim = CostModel.trace(apply_plan(copy.deepcopy(model), plan, groups), call, [])
    assert cost.params(plan) == slim.params()
    assert cost.macs(plan) == slim.macs()
    routers = (
        2 * 20 * sum(2 * model.get_parameter(f"{group.module}.gate.weight").shape[1] for group in groups)
    )
    if (
        name == STACK
    ):  # seven of twenty tokens for each of three experts are one more than four for each of five
        expert = sum(p[0].numel() for p in model.get_submodule(f"{groups[0].module}.experts").parameters())
        assert cost.macs(plan) == cost.macs() - routers + 2 * len(groups) * expert
    else:
        assert 0 < cost.macs() - cost.macs(plan) < 2 * routers  # nothing but logits


@torch.no_grad()
def test_costs_of_a_list_are_known_without_weights() -> None:
    tiny = ZOO[LIST]
    model, call = build(tiny), with_tuple(build(tiny), tiny.call(Draw(1)))
    with torch.device("meta"):
        shell = type(model)(**tiny.config)
    found = CostModel.trace(shell.to("meta").eval(), call, [])
    assert found.macs() == count_macs(lambda: model(**call))
    for mixture in mixtures(model):
        times = [found.applications[f"{expert}.w2.weight"] for expert in mixture.outputs]
        assert max(times) - min(times) <= 1
        assert sum(times) == mixture.chosen * found.applications[f"{mixture.path}.shared_experts.w2.weight"]


def test_asking_for_a_ratio_counts_each_parameter_once() -> None:
    model = build(ZOO[LIST])
    of_experts = {id(p) for m in mixtures(model) for p in model.get_submodule(m.experts).parameters()}
    of_experts |= {id(model.get_parameter(f"{m.router}.weight")) for m in mixtures(model)}
    size = sum(p.numel() for p in model.parameters() if id(p) in of_experts)
    groups = list(discover(model, {"experts", "ffn_channels"}))
    inside = [g for g in groups if g.kind == "experts" or ".experts." in g.module]
    cost = CostModel.untraced(model, groups)
    assert prunable(inside, cost, "params") == size
    assert prunable([g for g in inside if g.kind != "experts"], cost, "params") < size


@pytest.mark.parametrize(
    "kinds",
    [["experts"], ["experts", "ffn_channels"], ["experts", "ffn_channels", "attention_heads", "blocks"]],
)
@pytest.mark.parametrize("name", [LIST, STACK])
def test_what_is_asked_is_got(name: str, kinds: list[str]) -> None:
    tiny = with_config(LIST, num_routed_experts=12) if name == LIST else with_config(STACK, num_experts=24)
    model = build(tiny)
    groups = list(discover(model, kinds))
    cost = CostModel.trace(model, tiny.call(Draw(1)), groups)
    plan = allocate(groups, None, cost, Prune(kinds=kinds, scope="local", target=Target(ratio=0.4)))
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    assert sum(p.numel() for p in cut.parameters()) == plan.meta["got"]
    assert plan.meta["hit"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [LIST, "hidream_masked", STACK])
def test_random_plans_of_all_kinds(name: str, seed: int, tmp_path: Path) -> None:
    model = build(ZOO[name])
    plan = random_plan(model, KINDS, seed)
    masked = run(ZOO[name], mask_plan(model, plan))
    cut = apply_plan(model, plan)
    pruned = run(ZOO[name], cut)
    assert_same(pruned, masked)
    install_hook()
    save(cut, tmp_path)
    loaded = load(tmp_path)
    assert_same(run(ZOO[name], loaded), pruned, 2e-6)
    assert {n: p.shape for n, p in loaded.named_parameters()} == {
        n: p.shape for n, p in cut.named_parameters()
    }


def test_experts_are_barred_for_a_while() -> None:
    for name in (LIST, STACK):
        model = build(ZOO[name])
        group = next(discover(model, EXPERTS))
        before, state = run(ZOO[name], model), dict(vars(model.get_submodule(group.module)))
        expected = run(ZOO[name], mask_plan(model, PruningPlan(kept=without(group, 1)), [group]))
        assert not torch.equal(expected, before)
        with barred(model, group, [1]):
            assert torch.equal(run(ZOO[name], model), expected)
        assert torch.equal(run(ZOO[name], model), before)
        assert {k: v for k, v in vars(model.get_submodule(group.module)).items() if k[0] != "_"} == {
            k: v for k, v in state.items() if k[0] != "_"
        }


def test_experts_are_not_cut_unless_asked_for() -> None:
    assert "experts" in KINDS
    assert "experts" not in Prune().kinds
