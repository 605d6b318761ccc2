"""The list of candidates, and the plans that they make."""

from __future__ import annotations

import pytest
import torch

from pruning.allocation import CostModel, allocate
from pruning.allocation.candidates import blocks_freeing, candidate_plan, candidate_settings, mix, tempered
from pruning.calibration.observer import ALWAYS, STATISTICS
from pruning.calibration.seeing import Attention
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import CRITERIA, needs_of
from pruning.settings import Limit, Prune, Target
from pruning.settings.candidates import ALLOCATIONS, CANDIDATES, Candidate
from pruning.types import PruningPlan, Scores
from tests.models import call, dit, unet2d
from tests.unit.test_allocation import random_scores

KINDS = ["attention_heads", "ffn_channels", "resnet_channels", "blocks"]


def priced(model):
    groups = find_groups(model)
    return groups, CostModel.trace(model, call(model, batch_size=1), groups)


def test_the_list_begins_with_the_recipe_and_has_no_candidate_twice():
    assert CANDIDATES[0].is_own
    assert not any(one.is_own for one in CANDIDATES[1:])
    assert len(set(CANDIDATES)) == len(CANDIDATES)
    assert {one.allocation for one in CANDIDATES} == {*ALLOCATIONS}
    assert all(0 <= one.depth <= 1 for one in CANDIDATES if one.depth is not None)


def test_criteria_of_the_list_read_no_attention_and_no_weighted_rows():
    groups = find_groups(dit())
    for name in {name for one in CANDIDATES for name in one.criteria}:
        assert CRITERIA[name].weighting == "off"
        needs = needs_of(name, groups) - {ALWAYS}
        assert not any(isinstance(STATISTICS[need].sees, Attention) for need in needs), name


def test_names_say_what_a_candidate_is():
    assert Candidate().named("obs") == "obs, as in the recipe"
    mixed = Candidate(("obs", "probe"), "tempered 1/2", 0.25)
    assert mixed.named("sink") == "obs + probe, tempered 1/2, 25 % by blocks"
    assert Candidate(depth=0.0).named("obs") == "obs, as in the recipe, no blocks"


def scores_of(**values: list[float]) -> Scores:
    found = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return Scores(found, {"criterion": "c"})


def test_mixed_scores_are_shares_of_their_sums():
    found = mix([scores_of(a=[1, 3], b=[4]), scores_of(a=[10, 0], b=[30])])
    assert found.values["a"].tolist() == pytest.approx([1 / 8 + 1 / 4, 3 / 8])
    assert found.values["b"].tolist() == pytest.approx([1 / 2 + 3 / 4])
    assert found.meta["criterion"] == "c + c"


@pytest.mark.parametrize("by", [0.25, 0.5, 1.0])
def test_tempered_scores_keep_the_order_within_and_reduce_differences_between_groups(by):
    groups = [group for group in find_groups(dit(num_layers=1)) if group.kind != "blocks"]
    a, b = (group.name for group in groups)
    values = {
        a: torch.ones(groups[0].num_units, dtype=torch.float64),
        b: torch.full((groups[1].num_units,), 100.0, dtype=torch.float64),
    }
    costs = {a: 1.0, b: 4.0}  # prices per unit of cost: 1 and 25
    found = tempered(Scores(values), groups, costs, by)
    assert float(found.values[a][0]) == pytest.approx(1.0)
    assert float(found.values[b][0]) == pytest.approx(100 / 25**by)
    assert float(values[b][0]) == 100


def test_more_heads_go_where_their_scores_count_less():
    groups, cost = priced(dit(num_layers=6))
    groups = [group for group in groups if group.kind != "blocks"]
    settings = Prune(kinds=["attention_heads", "ffn_channels"], target=Target(macs=0.6))
    costs = cost.unit_costs("macs")
    drawn = random_scores(groups).values
    scores = Scores({group.name: drawn[group.name] * costs[group.name] for group in groups})
    left = {}
    for name in ("global", "more heads", "fewer heads"):
        plan = candidate_plan(groups, [scores], cost, settings, Candidate(allocation=name))
        left[name] = sum(len(plan.kept_units(group)) for group in groups if group.kind == "attention_heads")
    assert left["more heads"] < left["global"] < left["fewer heads"]


@pytest.mark.parametrize(
    ("change", "message"), [(lambda x: x - 1, "go below zero"), (lambda x: x * 0, "are all zero")]
)
def test_scores_without_a_zero_are_not_mixed_or_tempered(change, message):
    groups, cost = priced(dit())
    scores = random_scores(groups)
    strange = Scores({name: change(value) for name, value in scores.values.items()}, {"criterion": "flap"})
    with pytest.raises(PruningError, match=rf"scores of flap {message}, so that they cannot be tempered"):
        tempered(strange, groups, cost.unit_costs("macs"), 0.5)
    with pytest.raises(PruningError, match=rf"scores of flap {message}, so that they cannot be added"):
        mix([scores, strange])


@pytest.mark.parametrize("target", [Target(macs=0.75), Target(params=0.75), Target(ratio=0.25)])
@pytest.mark.parametrize("make", [lambda: dit(num_layers=12), unet2d], ids=["dit", "unet2d"])
def test_every_candidate_comes_as_near_to_the_target_as_its_units_allow(make, target):
    groups, cost = priced(make())
    settings = Prune(kinds=KINDS, target=target)
    for candidate in CANDIDATES:
        if make is unet2d and candidate.depth:
            continue  # its blocks are larger than any share
        scores = [random_scores(groups, seed) for seed in range(max(1, len(candidate.criteria)))]
        plan = candidate_plan(groups, scores, cost, settings, candidate)
        assert abs(plan.meta["got"] / plan.meta["goal"] - 1) < 0.05, candidate  # a head is a large step here
        if candidate.depth == 0:
            assert plan.removed_blocks == ()
        if candidate.is_own:
            assert plan == allocate(groups, scores[0], cost, settings)


@pytest.mark.parametrize("target", [Target(macs=0.5), Target(params=0.5), Target(ratio=0.5)])
def test_blocks_free_the_share_that_is_asked(target):
    model = dit(num_layers=12)
    groups, cost = priced(model)
    settings = Prune(kinds=KINDS, target=target)
    total = cost.macs if target.measure == "macs" else cost.params
    plan = candidate_plan(groups, [random_scores(groups)], cost, settings, Candidate(depth=0.5))
    freed = total() - total(plan)
    by_blocks = total() - total(PruningPlan(removed_blocks=plan.removed_blocks))
    block = cost.unit_costs(target.measure)[next(g.name for g in groups if g.kind == "blocks")]
    assert abs(by_blocks - 0.5 * freed) <= 0.5 * block + 0.02 * freed
    assert blocks_freeing(0.0, groups, random_scores(groups), cost, settings) == ()


def test_blocks_obey_their_limits_and_are_needed():
    model = dit(num_layers=6)
    groups, cost = priced(model)
    limits = [Limit(match="transformer_blocks.0*", max_ratio=0.0), Limit(match="ffn_channels", max_ratio=0.9)]
    settings = Prune(kinds=KINDS, target=Target(params=0.5), limits=limits)
    scores = random_scores(groups)
    gone = blocks_freeing(0.9, groups, scores, cost, settings)
    assert gone
    assert "transformer_blocks.0" not in gone
    without = [group for group in groups if group.kind != "blocks"]
    with pytest.raises(PruningError, match=r"no blocks may go that could free 0\.5 of what the target frees"):
        blocks_freeing(0.5, without, scores, cost, settings)
    several = Prune(kinds=KINDS, target=Target(params=0.5, macs=0.5))
    with pytest.raises(PruningError, match="take one target of macs, params or ratio"):
        blocks_freeing(0.5, groups, scores, cost, several)


def test_the_settings_of_an_allocation_change_the_scope_alone():
    settings = Prune(target=Target(macs=0.5), scope="local", round_to=4)
    for name in ALLOCATIONS:
        changed = candidate_settings(settings, Candidate(allocation=name))
        assert changed.round_to == 4
        assert changed.scope == ("local" if name in ("as in the recipe", "uniform") else "global")
