"""FLAP by hand, by its definition on raw rows, and what the allocator makes of scores below zero."""

from __future__ import annotations

import pytest
import torch

from pruning.allocation import CostModel, Target, allocate
from pruning.groups import find_groups
from pruning.importance import score
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


def test_scores_below_zero_rank_across_layers_without_costs():
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    cost = CostModel.trace(model, call(model, batch_size=1), groups)
    values = {}
    for seed, group in enumerate(groups):
        metric = torch.rand(group.num_units, generator=torch.Generator().manual_seed(seed)).double() ** 3
        values[group.name] = (metric - metric.mean()) / metric.std()
    plan = allocate(groups, Scores(values), cost, target=Target(ratio=0.3), per_cost=False)
    gone = torch.cat([values[g.name][list(plan.removed_units(g))] for g in groups])
    kept = torch.cat([values[g.name][list(plan.kept_units(g))] for g in groups])
    assert float(gone.max()) <= float(kept.min())
    assert len({len(plan.removed_units(g)) for g in groups}) > 1
    local = allocate(groups, Scores(values), cost, target=Target(ratio=0.3), scope="local")
    for group in groups:
        lowest = values[group.name].argsort()[: len(local.removed_units(group))].tolist()
        assert sorted(lowest) == list(local.removed_units(group))
