"""Bounds on time, memory and several costs at once: prices, the knapsack, and plans that hold."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging

import numpy as np
import pytest
import torch

from eval.cost import peak_memory
from pruning.allocation import CostModel, Curve, LatencyTable, MemoryModel, allocate, moments_of
from pruning.allocation.costs import Counted
from pruning.allocation.knapsack import Item, _binding, solve
from pruning.allocation.latency import evenness
from pruning.errors import PruningError
from pruning.groups import KINDS, find_groups
from pruning.models import first_answer
from pruning.settings import Limit, Prune, Target
from pruning.surgery import apply_plan
from pruning.types import PruningPlan, Scores
from tests.models import MODELS, call, dit
from tests.plans import random_plan
from tests.unit.test_allocation import WIDTHS, random_scores

UNCHANGED = {
    ("dit", "0.7 of the dense MACs", "global"): "d92a943953bdb959",
    ("dit", "0.7 of the dense MACs", "local"): "c976027e1d45ca25",
    ("dit", "0.8 of the dense parameters", "global"): "41d7d59a6238c84b",
    ("dit", "0.8 of the dense parameters", "local"): "fe18dbccca8ddae2",
    ("dit", "pruning ratio 0.4", "global"): "9e5834c41d558395",
    ("dit", "pruning ratio 0.4", "local"): "6af29e394dbe26fc",
    ("unet2d", "0.7 of the dense MACs", "global"): "d179db56988566f6",
    ("unet2d", "0.7 of the dense MACs", "local"): "3ff7e6198d8bef24",
    ("unet2d", "0.8 of the dense parameters", "global"): "23928b2d173d0919",
    ("unet2d", "0.8 of the dense parameters", "local"): "b1f99ea3e51f17d9",
    ("unet2d", "pruning ratio 0.4", "global"): "6cbe4e86f37b522c",
    ("unet2d", "pruning ratio 0.4", "local"): "aa4926c675e38843",
    ("unet2d-condition", "0.7 of the dense MACs", "global"): "1116fdea227d3324",
    ("unet2d-condition", "0.7 of the dense MACs", "local"): "af2891cce3415130",
    ("unet2d-condition", "0.8 of the dense parameters", "global"): "8aad04be5ecbe6f8",
    ("unet2d-condition", "0.8 of the dense parameters", "local"): "42ac1a70c7b085f8",
    ("unet2d-condition", "pruning ratio 0.4", "global"): "0705ee2c4ee7c024",
    ("unet2d-condition", "pruning ratio 0.4", "local"): "fd855e627e177a63",
}
"""Hashes of plans made before there were other targets."""


@pytest.mark.parametrize("family", ["dit", "unet2d", "unet2d-condition"])
def test_plans_for_macs_or_parameters_alone_are_what_they_were(family):
    model = MODELS[family]()
    groups = find_groups(model)
    cost = CostModel.trace(model, call(model, batch_size=1), groups)
    for target in (Target(macs=0.7), Target(params=0.8), Target(ratio=0.4)):
        for scope in ("global", "local"):
            settings = Prune(target=target, scope=scope, kinds=["blocks", *WIDTHS])
            plan = allocate(groups, random_scores(groups), cost, settings)
            found = hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
            assert found == UNCHANGED[family, str(target), scope]


@pytest.mark.parametrize("key", ["macs", "params"])
def test_counted_costs_are_sums_of_what_groups_free(key):
    model = dit()
    groups = find_groups(model, WIDTHS)
    cost = Counted(CostModel.trace(model, call(model, batch_size=1), groups), key)
    plan = PruningPlan(kept={group.name: (0,) for group in groups[:3]})
    (total,) = cost.sums()
    freed = sum(float(total.freed(group, [1])[0]) for group in groups[:3])
    assert cost.total() - freed == cost.total(plan)


# The knapsack.


def rough(seed: int, groups: int, sizes: int, sums: int) -> list[Item]:
    """Items whose costs are not linear: some smaller sizes free less than larger ones."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(groups):
        loss = np.concatenate([[0.0], np.cumsum(np.sort(rng.random(sizes - 1)))])
        freed = np.concatenate(
            [np.zeros((sums, 1)), np.cumsum(rng.random((sums, sizes - 1)) - 0.1, axis=1)], 1
        )
        items.append(Item(loss, freed))
    return items


def best_by_trying(items: list[Item], need: np.ndarray) -> float:
    losses = [
        sum(item.loss[rung] for item, rung in zip(items, rungs, strict=True))
        for rungs in itertools.product(*(range(len(item.loss)) for item in items))
        if np.all(sum(item.freed[:, rung] for item, rung in zip(items, rungs, strict=True)) >= need - 1e-12)
    ]
    return min(losses, default=np.inf)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("sums", [1, 2, 3])
def test_the_knapsack_is_solved_as_well_as_by_trying_all(seed, sums):
    items = rough(seed, groups=4, sizes=6, sums=sums)
    most = sum(item.freed.max(1) for item in items)
    need = np.asarray(most) * np.random.default_rng(seed).uniform(0.2, 0.8, sums)
    best, found = best_by_trying(items, need), solve(items, need)
    if found is None:
        assert best == np.inf
        return
    assert found.loss == pytest.approx(best, rel=1e-3)
    assert found.bound <= found.loss + 1e-9
    assert np.all(sum(i.freed[:, r] for i, r in zip(items, found.rungs, strict=True)) >= need - 1e-9)


def test_the_bound_of_the_knapsack_is_the_relaxation_by_hand():
    # Units that free 1 each and lose 1 and 3: to free 1.5 is all of the first and half of the other.
    items = [
        Item(np.array([0.0, 1.0]), np.array([[0.0, 1.0]])),
        Item(np.array([0.0, 3.0]), np.array([[0.0, 1.0]])),
    ]
    found = solve(items, np.array([1.5]))
    assert found is not None
    assert found.rungs == [1, 1]
    assert (found.loss, found.bound) == (4.0, pytest.approx(2.5, abs=1e-4))


def test_what_lies_in_a_block_that_goes_is_not_chosen():
    block = Item(np.array([0.0, 1.0]), np.array([[0.0, 10.0]]))
    inner = Item(np.array([0.0, 0.5]), np.array([[0.0, 4.0]]), within=(0,))
    found = solve([block, inner], np.array([9.0]))
    assert found is not None
    assert found.rungs == [1, 0]
    assert solve([block, inner], np.array([10.5])) is None


def test_a_sum_that_another_implies_is_left_out():
    items = [Item(np.array([0.0, 1.0]), np.array([[0.0, 2.0], [0.0, 3.0], [0.0, 1.0], [0.0, 9.0]]))]
    need = np.array([1.0, 0.5, 0.9, -1.0])  # the second gives more and needs less; the third gives less
    assert _binding(items, need).tolist() == [True, False, True, False]


def test_a_large_knapsack_is_near_its_bound():
    rng = np.random.default_rng(0)
    items = []
    for _ in range(40):
        loss = np.concatenate([[0.0], np.cumsum(np.sort(rng.random(1999)))])
        items.append(Item(loss, np.linspace(0, rng.random(), 2000)[None]))
    found = solve(items, np.array([0.5 * sum(float(item.freed.max()) for item in items)]))
    assert found is not None
    assert found.loss - found.bound <= 1e-3 * found.loss


# Time.


def table(model, groups, seconds=1.0, *, exact=False) -> LatencyTable:
    """A table by hand: half of each layer's time falls with its units, in steps of eight units."""
    units = [group for group in groups if group.kind != "blocks"]
    curves = {}
    for group in units:
        kept = sorted({*range(8, group.num_units, 8), 1, group.num_units})
        share = tuple(0.5 + 0.5 * n / group.num_units for n in kept)
        curves[group.name] = Curve(tuple(kept), share, exact=exact)
    each = 0.8 * seconds / len(units)
    times = {group.name: each if group.kind != "blocks" else 2.2 * each for group in groups}
    return LatencyTable(seconds, 0.01, times, curves, {g.name: g.name for g in units}, {}, tuple(groups))


def test_time_of_a_plan_by_hand():
    model = dit(num_layers=2)
    groups = find_groups(model)
    times = table(model, groups)
    ff = next(group for group in groups if group.kind == "ffn_channels" and ".1." in group.name)
    block = next(group for group in groups if group.kind == "blocks" and ".1" in group.name)
    each = 0.8 / 4
    half = PruningPlan(kept={ff.name: tuple(range(ff.num_units // 2))})
    assert times.total() == 1.0
    assert times.total(half) == pytest.approx(1 - each * 0.25)
    gone = PruningPlan(kept=half.kept, removed_blocks=(block.module,))
    assert times.total(gone) == pytest.approx(1 - 2.2 * each)  # what is inside it does not count twice
    assert times.corrected(0.9, 0.95).total(half) == pytest.approx(1.05 - each * 0.25)
    again = LatencyTable.from_json(json.loads(json.dumps(times.to_json())), groups)
    assert again.total(half) == times.total(half)


def test_uneven_widths_between_measured_ones_take_longer():
    model = dit(num_layers=1)
    groups = find_groups(model, ["ffn_channels"])
    (ff,) = groups
    curve = Curve((32, 64, 128), (0.25, 0.5, 1.0))
    steps = {"ffn_channels": {"64": 1.0, "32": 1.0, "16": 1.1, "8": 1.1, "4": 1.2, "2": 1.2, "1": 1.3}}
    times = LatencyTable(1.0, 0.0, {ff.name: 0.5}, {"c": curve}, {ff.name: "c"}, steps, tuple(groups))
    assert [evenness(n) for n in (96, 48, 7, 128)] == [32, 16, 1, 64]

    def share(kept: int) -> float:
        return 1 - (1 - times.total(PruningPlan(kept={ff.name: tuple(range(kept))}))) / 0.5

    assert share(96) == pytest.approx(0.75)
    assert share(48) == pytest.approx(0.375 * 1.1)
    assert share(49) == pytest.approx((0.25 + 0.25 * 17 / 32) * 1.3)
    assert times.known(ff) == (32, 64, 128)


def test_time_is_spent_where_scores_say_and_widths_are_measured_ones():
    model = dit(num_layers=4)
    groups = find_groups(model, WIDTHS)
    cost, times = CostModel.trace(model, call(model, batch_size=1), groups), table(model, groups)
    plan = allocate(
        groups,
        random_scores(groups),
        cost,
        Prune(target=Target(latency=0.75)),
        measured={"latency": times},
    )
    told = plan.meta["targets"]["latency"]
    assert plan.meta["hit"]
    assert 0.74 <= told["predicted"] <= 0.75 * (1 + 1e-6)
    assert told["predicted"] == times.total(plan)
    assert plan.meta["asked"] == "0.75 of the dense latency"
    assert plan.meta["solver"]["gap"] <= 0.2
    for group in groups:
        assert len(plan.kept_units(group)) in times.curves[group.name].kept
    again = allocate(
        groups, random_scores(groups), cost, Prune(target=Target(latency_ms=750)), measured={"latency": times}
    )
    assert again.kept == plan.kept


def test_no_plan_of_the_same_widths_loses_less():
    model = dit(num_layers=2)
    groups = find_groups(model, ["attention_heads"])
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), random_scores(groups, 3)
    times = table(model, groups, exact=True)

    def lost(plan: PruningPlan) -> float:
        return sum(float(scores.values[g.name][list(plan.removed_units(g))].sum()) for g in groups)

    plan = allocate(groups, scores, cost, Prune(target=Target(latency=0.8)), measured={"latency": times})
    others = []
    for sizes in itertools.product(*(times.curves[g.name].kept for g in groups)):
        order = {g.name: scores.values[g.name].argsort().tolist() for g in groups}
        kept = {
            g.name: tuple(sorted(order[g.name][g.num_units - n :]))
            for g, n in zip(groups, sizes, strict=True)
        }
        other = PruningPlan(kept=kept)
        if times.total(other) <= 0.8 + 1e-9:
            others.append(lost(other))
    assert lost(plan) == pytest.approx(min(others))


# Memory.


@pytest.mark.parametrize("family", ["dit", "unet2d", "unet2d-condition"])
def test_traced_memory_is_what_is_measured(family):
    model = MODELS[family]().eval()
    groups, inputs = find_groups(model), call(model, batch_size=1)
    cost = CostModel.trace(model, inputs, groups)
    memory = traced(model, groups, inputs, cost)

    def measured(some) -> int:
        return peak_memory(some, lambda: first_answer(some, inputs))[0]

    assert memory.total() == measured(model)
    for seed in range(3):
        plan = random_plan(model, KINDS, seed=seed)
        slim = apply_plan(copy.deepcopy(model), plan, groups)
        assert memory.total(plan) == pytest.approx(measured(slim), rel=0.02)


def traced(model, groups, inputs, cost) -> MemoryModel:
    """Trace a model dense and with each kind of group cut by half."""
    cut = []
    for kind in WIDTHS:
        own = [group for group in groups if group.kind == kind and group.num_units > 1]
        kept = {group.name: tuple(range(group.num_units // 2)) for group in own}
        slim = apply_plan(copy.deepcopy(model), PruningPlan(kept=kept), groups)
        shares = {group.name: 1 - (group.num_units // 2) / group.num_units for group in own}
        cut.append((shares, moments_of(slim, inputs, dtype=torch.float32, device="cpu")))
    dense = moments_of(model, inputs, dtype=torch.float32, device="cpu")
    return MemoryModel.of(cost, dense, cut, itemsize=4, buffers=buffers_of(model))


def buffers_of(model) -> int:
    return sum(b.numel() * b.element_size() for b in model.buffers())


def test_memory_in_another_type_is_half():
    model = dit()
    inputs = call(model, batch_size=1)
    whole = moments_of(model, inputs, dtype=torch.float32, device="cpu")
    half = moments_of(model, inputs, dtype=torch.bfloat16, device="cpu")
    assert max(m.live for m in half) < 0.6 * max(m.live for m in whole)


def test_a_model_that_values_decide_of_cannot_be_traced():
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x) if bool(x.sum() > 0) else x

    with pytest.raises(PruningError, match="memory of a call of Odd cannot be traced without values"):
        moments_of(Odd(), {"x": torch.ones(1, 4)}, dtype=torch.float32, device="cpu")


# Several at once.


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("family", ["dit", "unet2d"])
def test_all_targets_hold_and_one_binds(family, scope):
    model = MODELS[family]()
    groups = find_groups(model, WIDTHS)
    inputs = call(model, batch_size=1)
    cost = CostModel.trace(model, inputs, groups)
    memory = traced(model, groups, inputs, cost)
    measured = {"latency": table(model, groups), "memory": memory}
    for target in (
        Target(macs=0.6, params=0.9),
        Target(macs=0.9, params=0.7),
        Target(latency=0.8, macs=0.9),
        Target(latency=0.9, memory_gb=0.85 * memory.total() / 1e9),
        Target(ratio=0.3, macs=0.8),
    ):
        settings = Prune(target=target, scope=scope)
        plan = allocate(groups, random_scores(groups), cost, settings, measured=measured)
        targets = plan.meta["targets"]
        assert targets.keys() == target.given.keys()
        shares = {key: row["predicted"] / row["goal"] for key, row in targets.items()}
        assert max(shares.values()) <= 1 + 1e-6
        assert max(shares.values()) >= 0.93
        binding = [key for key, row in targets.items() if row["binds"]]
        assert binding == [max(shares, key=lambda key: shares[key])]
        assert plan.meta["asked"] == " and ".join(target.words().values())
        assert plan == allocate(groups, random_scores(groups), cost, settings, measured=measured)


def test_blocks_go_under_several_targets():
    model = dit(num_layers=4)
    groups = find_groups(model)
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), random_scores(groups)
    for group in groups:
        if group.kind == "blocks":
            scores.values[group.name] = torch.tensor([0.0 if "blocks.2" in group.name else 1e9]).double()
    settings = Prune(target=Target(params=0.6, macs=0.9), kinds=["blocks", *WIDTHS])
    plan = allocate(groups, scores, cost, settings)
    assert plan.removed_blocks == ("transformer_blocks.2",)
    assert not any(name.startswith("transformer_blocks.2.") for name in plan.kept)
    assert plan.meta["hit"]
    assert plan.meta["solver"]["method"] == "knapsack"


def test_scores_without_a_zero_are_compared_as_they_are():
    model = dit()
    groups = find_groups(model, WIDTHS)
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), random_scores(groups)
    scores = Scores({name: values - 0.5 for name, values in scores.values.items()}, {"criterion": "flap"})
    plan = allocate(groups, scores, cost, Prune(target=Target(macs=0.7, params=0.9)))
    assert plan.meta["per_cost"] is False
    assert plan.meta["solver"] == {"method": "in the order of prices"}
    assert plan.meta["hit"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(latency=0.2), "0.2 of the dense latency: needs 200 ms, but .* the least reachable is 6"),
        (Target(latency_ms=10, macs=0.9), "target 10 ms a call: needs 10 ms, but .* of the dense 1,000 ms"),
        (Target(memory_gb=1e-6), "target 1e-06 GB in a call: needs 1e-06 GB, but .* least reachable"),
        (Target(macs=0.9, params=0.01), "target 0.01 of the dense parameters: needs"),
    ],
)
def test_what_cannot_be_reached_says_what_can(target, message):
    model = dit()
    groups, inputs = find_groups(model, WIDTHS), call(model, batch_size=1)
    cost = CostModel.trace(model, inputs, groups)
    measured = {"latency": table(model, groups), "memory": traced(model, groups, inputs, cost)}
    with pytest.raises(PruningError, match=message):
        allocate(groups, random_scores(groups), cost, Prune(target=target), measured=measured)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(latency=0.5), "no table of times was given"),
        (Target(memory_gb=1), "no model of memory was given"),
    ],
)
def test_what_belongs_to_a_device_must_be_given(target, message):
    model = dit()
    groups = find_groups(model, WIDTHS)
    cost = CostModel.trace(model, call(model, batch_size=1), groups)
    with pytest.raises(PruningError, match=message):
        allocate(groups, random_scores(groups), cost, Prune(target=target))


def test_room_that_is_left_is_said(caplog):
    model = dit(num_layers=1)
    groups = find_groups(model, ["attention_heads"])
    cost = CostModel.trace(model, call(model, batch_size=1), groups)
    with caplog.at_level(logging.WARNING):
        plan = allocate(groups, random_scores(groups), cost, Prune(target=Target(macs=0.97, params=0.99)))
    assert not plan.meta["hit"]
    assert "targets hold with more than 1 % of room" in caplog.text


def test_limits_hold_under_several_targets():
    model = dit()
    groups = find_groups(model, WIDTHS)
    cost = CostModel.trace(model, call(model, batch_size=1), groups)
    limits = [Limit(match="transformer_blocks.0.*", max_ratio=0.0)]
    settings = Prune(target=Target(macs=0.8, params=0.9), limits=limits)
    plan = allocate(groups, random_scores(groups), cost, settings)
    assert not any(name.startswith("transformer_blocks.0.") for name in plan.kept)
