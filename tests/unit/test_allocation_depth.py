"""The search that measures sets of blocks: what it finds, what it never does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.allocation import CostModel, allocate, choose_blocks, search_depth
from pruning.allocation.block_sets import BlockSets
from pruning.allocation.budget import TOLERANCE
from pruning.allocation.interactions import Interactions
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.settings import Depth, Limit, Prune, Target
from pruning.types import PruningPlan, Scores
from tests.models import call, dit, unet2d

Change = Callable[[frozenset[str]], float]


class Depths:
    """A DiT whose blocks change a made-up amount together, and the plan that adds up single ones."""

    def __init__(self, change: Change, layers: int = 9, gone: int = 2, *, make=dit, **asked) -> None:
        self.model = make(num_layers=layers) if make is dit else make()
        self.groups = [group for group in find_groups(self.model) if group.kind == "blocks"]
        self.cost = CostModel.trace(self.model, call(self.model, batch_size=1), find_groups(self.model))
        self.asked: list[tuple[str, ...]] = []
        self.change = change
        if "target" not in asked:
            unit = self.cost.unit_costs("params")[self.groups[0].name]
            asked["target"] = Target(params=1 - gone * unit / self.cost.params())
        self.settings = {"kinds": ["blocks"], **asked}
        self.alone = {group.module: change(frozenset({group.module})) for group in self.groups}
        values = {g.name: torch.tensor([self.alone[g.module]], dtype=torch.float64) for g in self.groups}
        self.scores = Scores(values)

    def measure(self, removed: tuple[str, ...]) -> float:
        self.asked.append(removed)
        return self.change(frozenset(removed))

    def plan(self) -> PruningPlan:
        return allocate(self.groups, self.scores, self.cost, Prune(**self.settings))

    def search(self, budget: int, *, known: bool = True):
        start, asked = self.plan(), Prune(**self.settings, depth=Depth(budget=budget))
        return search_depth(
            self.groups,
            self.cost,
            asked,
            start,
            self.measure,
            goal=start.meta["goal"],
            alone=self.alone if known else None,
        )


def numbers(removed) -> set[int]:
    return {int(path.rpartition(".")[2]) for path in removed}


def redundant(removed: frozenset[str]) -> float:
    """Blocks 2 and 3 do the same: either may go, not both."""
    gone = numbers(removed)
    return 0.1 * len(gone & {2, 3}) + 5 * ({2, 3} <= gone) + sum(0.5 + 0.01 * k for k in gone - {2, 3})


def undoing(removed: frozenset[str]) -> float:
    """Blocks 4 to 6 undo each other: dear one by one, cheap as a run."""
    gone = numbers(removed)
    run = (0.0, 1.0, 0.9, 0.3)[len(gone & {4, 5, 6})]
    return run + sum(0.5 + 0.01 * k for k in gone - {4, 5, 6})


def test_neighbours_that_do_the_same_do_not_both_go():
    found = Depths(redundant).search(8)
    assert numbers(found.trace["start"]["removed"]) == {2, 3}
    assert found.trace["start"]["change"] == pytest.approx(5.2)
    assert found.trace["start"]["sum_alone"] == pytest.approx(0.2)
    assert numbers(found.removed) == {1, 2}
    assert found.trace["chosen"]["change"] == pytest.approx(0.61)


def test_a_run_that_is_cheap_together_goes():
    found = Depths(undoing, gone=3).search(20)
    assert numbers(found.trace["start"]["removed"]) == {1, 2, 3}
    assert numbers(found.removed) == {4, 5, 6}
    assert found.trace["chosen"]["sum_alone"] == pytest.approx(3.0)
    assert found.trace["chosen"]["change"] == pytest.approx(0.3)


def test_where_single_changes_add_up_the_sum_is_kept():
    depths = Depths(lambda removed: sum(0.1 * k for k in numbers(removed)), gone=3)
    found = depths.search(15)
    assert numbers(found.removed) == {1, 2, 3}
    assert found.trace["chosen"] == found.trace["start"]
    assert found.trace["chosen"]["change"] == pytest.approx(found.trace["chosen"]["sum_alone"])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("budget", [1, 2, 5, 12, 40])
def test_the_budget_holds_and_no_set_is_measured_twice(budget, known):
    depths = Depths(undoing, gone=3)
    found = depths.search(budget, known=known)
    assert len(depths.asked) == len(set(depths.asked)) == len(found.trace["measured"]) <= budget
    assert depths.asked[0] == tuple(found.trace["start"]["removed"])
    assert [entry["change"] for entry in found.trace["measured"]] == [
        undoing(frozenset(entry["removed"])) for entry in found.trace["measured"]
    ]
    if known is False and budget == 40:  # eight single blocks were measured first
        assert found.trace["chosen"]["sum_alone"] == pytest.approx(3.0)
    if known is False and budget == 1:
        assert found.trace["chosen"]["sum_alone"] is None


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.integers(1, 25), keep=st.floats(0.55, 0.95), unet=st.booleans())
def test_it_is_never_worse_than_the_plan_and_deterministic(seed, budget, keep, unet):
    """Whatever the change of a set: any numbers."""

    def change(removed: frozenset[str]) -> float:
        generator = torch.Generator().manual_seed(seed)
        draw = torch.rand(len(ORDER), generator=generator).tolist()
        mixed = sum(draw[ORDER[path]] for path in removed)
        return mixed * (0.5 + math.sin(37 * mixed) ** 2)

    depths = UNET if unet else DIT
    depths.change, depths.asked = change, []
    depths.alone = {group.module: change(frozenset({group.module})) for group in depths.groups}
    depths.scores = Scores(
        {g.name: torch.tensor([depths.alone[g.module]], dtype=torch.float64) for g in depths.groups}
    )
    depths.settings["target"] = Target(params=keep)
    start = depths.plan()
    found = depths.search(budget)
    if not start.removed_blocks:
        assert found.removed == ()
        assert depths.asked == []
        return
    chosen = found.trace["chosen"]
    assert chosen["change"] <= found.trace["start"]["change"]
    assert chosen["change"] == min(
        entry["change"]
        for entry in found.trace["measured"]
        if abs(entry["cost"] - start.meta["goal"])
        <= max(TOLERANCE * start.meta["goal"], abs(start.meta["got"] - start.meta["goal"])) * (1 + 1e-9)
    )
    assert chosen["cost"] == depths.cost.params(PruningPlan(removed_blocks=found.removed))
    assert found == depths.search(budget)


def test_blocks_that_change_nothing_alone_are_searched():
    """A later pair or run may still change much."""
    depths = Depths(lambda removed: float({1, 2} <= numbers(removed)))
    found = depths.search(6)
    assert (found.trace["start"]["change"], found.trace["chosen"]["change"]) == (1.0, 0.0)


def test_limits_hold():
    depths = Depths(redundant, limits=[Limit(match="*transformer_blocks.1*", max_ratio=0.0)])
    found = depths.search(20)
    assert numbers(found.removed) == {2, 4}
    assert not any("transformer_blocks.1" in removed for removed in depths.asked)


def test_without_blocks_to_go_nothing_is_measured():
    depths = Depths(redundant, target=Target(params=0.999))
    found = depths.search(20)
    assert (found.removed, depths.asked) == ((), [])
    assert found.trace["start"] is found.trace["chosen"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_change_that_is_none_is_refused(bad):
    depths = Depths(redundant)
    depths.change = lambda removed: bad
    with pytest.raises(
        PruningError, match=r"without transformer_blocks\.2, transformer_blocks\.3 was measured as"
    ):
        depths.search(3)


def sets_of(model, **asked) -> BlockSets:
    groups = find_groups(model)
    cost = CostModel.trace(model, call(model, batch_size=1), groups)
    return BlockSets.of(groups, cost, Prune(target=Target(macs=0.5), **asked))


def test_neighbours_are_items_of_a_list_and_runs_jump_over_what_is_gone():
    sets = sets_of(dit(num_layers=9))

    def runs(gone: set[int], first: int) -> list[set[int]]:
        found = [numbers(sets.paths_of(run)) for run in sets.moves(sets.of_paths(_paths(gone)))]
        return [run for run in found if min(run) == first]

    assert runs(set(), 1) == [{*range(1, stop)} for stop in range(2, 8)]  # one to six
    assert runs({2, 3}, 1)[:3] == [{1}, {1, 4}, {1, 4, 5}]
    assert runs(set(), 8) == [{8}]
    limited = sets_of(dit(num_layers=9), limits=[Limit(match="*blocks.4*", max_ratio=0.0)])
    assert [numbers(limited.paths_of(run)) for run in limited.moves(frozenset())][:4] == [
        {1},
        {1, 2},
        {1, 2, 3},
        {2},
    ]
    gone = limited.of_paths(_paths({2, 3, 6}))
    assert [numbers(limited.paths_of(run)) for run in limited.runs(gone)] == [{2}, {2, 3}, {3}, {6}]


def _paths(gone: set[int]) -> list[str]:
    return [f"transformer_blocks.{k}" for k in gone]


def test_blocks_inside_others_count_once():
    sets = sets_of(unet2d())
    inner = [path for path in sets.paths if path.startswith("mid_block.")]
    assert inner
    both = sets.of_paths(["mid_block", *inner])
    assert sets.paths_of(both) == ("mid_block",)
    assert sets.cost(both) <= sets.cost(sets.of_paths(inner)) < sets.dense
    assert sets.cost(both) == UNET.cost.macs(PruningPlan(removed_blocks=("mid_block", *inner)))
    gone = {path for move in sets.moves(both) for path in sets.paths_of(move)}
    assert gone.isdisjoint({"mid_block", *inner})
    swapped = sets.sets(sets.swapped(sets.of_paths(inner[:1])))
    assert all(sets.reduced(found) == found for found in swapped)
    assert both in swapped


def test_expectations_by_hand():
    """Two blocks of change 1 and 4: before, the sum; after their pair was measured, that."""
    expected = Interactions(torch.tensor([1.0, 4.0]).double())
    both = torch.ones(1, 2).double()
    expected.learn(both[:0], torch.zeros(0).double())
    mean, deviation = expected.of(both)
    assert float(mean) == pytest.approx(5)
    assert float(deviation) == pytest.approx(math.sqrt(0.3**2 * (1 + 16) + 0.7**2 * 4))
    expected.learn(both, torch.tensor([2.0]).double())
    mean, deviation = expected.of(both)
    assert float(mean) == pytest.approx(2, abs=0.02)
    assert float(deviation) == pytest.approx(0.1, abs=0.01)  # a twentieth of what was measured


def mixed(change: Change, **asked):
    """Return a tiny DiT of which heads and channels may go, too, with its plan."""
    depths = Depths(change, layers=6, target=Target(params=0.6))
    groups = find_groups(depths.model, ["attention_heads", "ffn_channels", "blocks"])
    generator = torch.Generator().manual_seed(0)
    values = {
        g.name: 40 + torch.rand(g.num_units, generator=generator, dtype=torch.float64)
        for g in groups
        if g.kind != "blocks"
    }
    settings = Prune(**{**depths.settings, "kinds": ["attention_heads", "ffn_channels", "blocks"], **asked})
    scores = Scores({**depths.scores.values, **values})
    return (
        depths,
        groups,
        scores,
        settings,
        allocate(groups, scores, depths.cost, settings, start=PruningPlan(base_hash="abc")),
    )


def test_units_are_allocated_anew_around_the_blocks():
    depths, groups, scores, settings, plan = mixed(redundant, depth=Depth(budget=10))
    assert {2, 3} <= numbers(plan.removed_blocks)
    assert plan.kept, "channels go, too"
    anew, trace = choose_blocks(
        groups, scores, depths.cost, settings, plan, depths.measure, alone=depths.alone
    )
    assert trace["kept"] is None
    assert not {2, 3} <= numbers(anew.removed_blocks)
    assert anew.removed_blocks == tuple(trace["chosen"]["removed"])
    assert anew.meta["hit"]
    assert anew.base_hash == "abc"
    assert depths.cost.params(anew) == pytest.approx(0.6 * depths.cost.params(), rel=TOLERANCE)
    assert not any(anew.removes(name) for name in anew.kept)
    back = set(plan.removed_blocks) - set(anew.removed_blocks)
    assert back
    assert anew.meta["depth"]["chosen"] < anew.meta["depth"]["start"]


def test_a_plan_stays_where_nothing_better_is_found():
    depths, groups, scores, settings, plan = mixed(lambda removed: float(len(removed)), depth=Depth(budget=6))
    same, trace = choose_blocks(groups, scores, depths.cost, settings, plan, depths.measure)
    assert (same.kept, same.removed_blocks) == (plan.kept, plan.removed_blocks)
    assert "no blocks were found that change the output less" in trace["kept"]


def test_a_plan_that_removes_no_block_stays():
    depths, groups, scores, settings, _ = mixed(redundant, depth=Depth(budget=6))
    settings = replace(settings, target=Target(params=0.9))
    plan = allocate(groups, scores, depths.cost, settings, blocks=())
    assert plan.removed_blocks == ()
    same, trace = choose_blocks(groups, scores, depths.cost, settings, plan, depths.measure)
    assert (same.kept, trace["kept"], depths.asked) == (plan.kept, "it removes no block", [])


def test_a_plan_stays_where_the_rest_cannot_make_up_for_other_blocks():
    depths, groups, scores, settings, plan = mixed(redundant, depth=Depth(budget=6))
    limits = [Limit(match=kind, max_ratio=0.0) for kind in ("attention_heads", "ffn_channels")]
    tight = replace(settings, limits=limits)
    same, trace = choose_blocks(groups, scores, depths.cost, tight, plan, depths.measure, alone=depths.alone)
    assert (same.kept, same.removed_blocks) == (plan.kept, plan.removed_blocks)
    assert "least reachable" in trace["kept"]
    assert trace["chosen"] == trace["start"]


def test_blocks_that_are_decided_are_not_asked_about():
    depths, groups, scores, settings, _ = mixed(redundant)
    gone = ("transformer_blocks.5",)
    plan = allocate(groups, scores, depths.cost, settings, blocks=gone)
    assert plan.removed_blocks == gone
    assert plan.meta["hit"]
    with pytest.raises(
        PruningError, match=r"'transformer_blocks\.0' that is to go is none of the given groups"
    ):
        allocate(groups, scores, depths.cost, settings, blocks=("transformer_blocks.0",))


DIT, UNET = Depths(redundant, layers=12), Depths(lambda removed: 1.0, make=unet2d, target=Target(params=0.5))
ORDER = {group.module: place for depths in (DIT, UNET) for place, group in enumerate(depths.groups)}
