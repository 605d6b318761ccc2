"""FLAP by hand, by its definition on raw rows, and what the allocator makes of scores below zero."""

from __future__ import annotations

import pytest
import torch

from pruning.allocation import CostModel, allocate
from pruning.groups import find_groups
from pruning.importance import score
from pruning.settings import Prune, Target
from pruning.types import Scores
from tests.models import call, dit
from tests.unit.importance_rows import linear_group, random_rows, random_weight, stats_of

OUT = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, 0]])  # squared column norms 1, 5, 9, 1


def test_flap_by_hand():
    # Variances of the channels: 1, 1, 0, 0, so they fluctuate by 1, 5, 0, 0: mean 3/2, sample variance 17/3.
    rows = torch.tensor([[1.0, 0, 2, 1], [3, 0, 2, 1], [1, 2, 2, 1], [3, 2, 2, 1]])
    heads, ffn = linear_group(2, 2), linear_group(4, 1, kind="ffn_channels")
    spread = (17 / 3) ** 0.5
    for group, expected in ((heads, [1.5, -1.5]), (ffn, [-0.5, 3.5, -1.5, -1.5])):
        got = score({"m.out.weight": OUT}, [group], stats_of(group, rows), criterion="flap")
        assert got.values[group.name].tolist() == pytest.approx([value / spread for value in expected])


@pytest.mark.parametrize(("kind", "units", "u"), [("attention_heads", 3, 4), ("ffn_channels", 12, 1)])
def test_flap_is_its_definition_on_raw_rows(kind: str, units: int, u: int):
    group, rows, weight = linear_group(units, u, kind=kind), random_rows(50, 12), random_weight(5, 12)
    metric = rows.var(0) * weight.square().sum(0)
    z = (metric - metric.mean()) / metric.std()
    got = score({"m.out.weight": weight}, [group], stats_of(group, rows), criterion="flap")
    torch.testing.assert_close(got.values[group.name], z.view(units, u).mean(1), rtol=1e-9, atol=1e-9)


def test_a_layer_that_fluctuates_evenly_scores_nothing():
    group = linear_group(4, 1, kind="ffn_channels")
    rows = torch.cat([torch.eye(4), -torch.eye(4)])
    for still in (rows, torch.ones(8, 4)):
        got = score({"m.out.weight": torch.ones(2, 4)}, [group], stats_of(group, still), criterion="flap")
        assert got.values[group.name].tolist() == [0.0] * 4


def test_flap_does_not_see_the_scale_of_a_layer():
    group, rows, weight = linear_group(6, 2), random_rows(50, 12), random_weight(5, 12)
    small, large = (
        score({"m.out.weight": s * weight}, [group], stats_of(group, rows), criterion="flap").values[
            group.name
        ]
        for s in (1, 1000)
    )
    torch.testing.assert_close(small, large)


def standardised(groups) -> Scores:
    """Scores with a mean of 0 and a deviation of 1 in each group, as FLAP's are."""
    values = {}
    for seed, group in enumerate(groups):
        metric = torch.rand(group.num_units, generator=torch.Generator().manual_seed(seed)).double() ** 3
        values[group.name] = (metric - metric.mean()) / metric.std()
    return Scores(values, {"criterion": "flap"})


def test_scores_below_zero_rank_across_layers():
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), standardised(groups)
    values = scores.values
    plan = allocate(groups, scores, cost, Prune(target=Target(ratio=0.3)))
    gone = torch.cat([values[g.name][list(plan.removed_units(g))] for g in groups])
    kept = torch.cat([values[g.name][list(plan.kept_units(g))] for g in groups])
    assert float(gone.max()) <= float(kept.min())
    assert len({len(plan.removed_units(g)) for g in groups}) > 1
    local = allocate(groups, scores, cost, Prune(target=Target(ratio=0.3), scope="local"))
    for group in groups:
        lowest = values[group.name].argsort()[: len(local.removed_units(group))].tolist()
        assert sorted(lowest) == list(local.removed_units(group))


def test_scores_below_zero_are_not_divided_by_costs_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    model = dit()
    groups = find_groups(
        model, ["attention_heads", "ffn_channels"]
    )  # a head costs 9 times as much as a channel
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), standardised(groups)
    bare = allocate(groups, scores, cost, Prune(target=Target(macs=0.7), per_cost=False))
    assert not caplog.text
    plan = allocate(groups, scores, cost, Prune(target=Target(macs=0.7)))
    assert (plan.kept, plan.meta["per_cost"]) == (bare.kept, False)
    assert "prune.per_cost: scores of the criterion 'flap' go below zero (-" in caplog.text
    gone = torch.cat([scores.values[g.name][list(plan.removed_units(g))] for g in groups])
    kept = torch.cat([scores.values[g.name][list(plan.kept_units(g))] for g in groups])
    assert float(gone.median()) < float(kept.min())  # divided by costs, the lowest heads would stay


def test_a_shift_of_scores_below_zero_changes_nothing():
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), standardised(groups)
    lower = Scores({name: value - 3 for name, value in scores.values.items()})
    plans = [allocate(groups, found, cost, Prune(target=Target(macs=0.7))) for found in (scores, lower)]
    assert plans[0].kept == plans[1].kept


def test_rounding_below_zero_is_divided_by_costs_like_zero(caplog: pytest.LogCaptureFixture):
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    cost, scores = CostModel.trace(model, call(model, batch_size=1), groups), standardised(groups)
    above = Scores({name: (value - value.min()).square() for name, value in scores.values.items()})
    around = Scores({name: value - 1e-13 * value.max() for name, value in above.values.items()})
    plans = [allocate(groups, found, cost, Prune(target=Target(macs=0.7))) for found in (above, around)]
    assert plans[0].kept == plans[1].kept
    assert all(plan.meta["per_cost"] for plan in plans)
    assert not caplog.text
    assert plans[0].kept != allocate(groups, above, cost, Prune(target=Target(macs=0.7), per_cost=False)).kept
