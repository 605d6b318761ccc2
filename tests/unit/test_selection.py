"""Selection block by block: the order, what is measured when, and that the cut equals what was silenced."""

from __future__ import annotations

import copy

import pytest
import torch

from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.selection import block_by_block, in_order
from pruning.surgery import apply_plan
from pruning.types import CalibrationStats, PruningPlan, Scores
from tests.models import MODELS, run
from tests.plans import random_plan

KINDS = ("attention_heads", "ffn_channels", "resnet_channels")


def by_norm(model):
    """Return a judge: a unit weighs as much as its consumer's columns do now."""

    def judge(groups, stats):
        values = {}
        for group in groups:
            part = group.consumed_by[0]
            weight = model.get_parameter(part.path).detach().double()
            columns = weight.narrow(part.dim, part.offset, group.num_units * part.unit_size)
            columns = columns.movedim(part.dim, 0).reshape(group.num_units, -1)
            values[group.name] = columns.square().sum(1)
        return Scores(values)

    return judge


def nothing(groups):
    return CalibrationStats()


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("family", list(MODELS))
def test_as_many_units_as_planned_and_the_cut_equals_the_silenced_model(family, rounds):
    model = MODELS[family]()
    groups = find_groups(model)
    plan = random_plan(model, KINDS, seed=3)
    new, report = block_by_block(
        model,
        groups,
        plan,
        run=lambda: run(model),
        measure=nothing,
        judge=by_norm(model),
        rounds=rounds,
    )
    assert report == {}
    assert {k: len(v) for k, v in new.kept.items()} == {k: len(v) for k, v in plan.kept.items()}
    silenced = run(model)
    cut = run(apply_plan(copy.deepcopy(model), new))
    assert (cut - silenced).abs().max() <= 1e-5 * max(1.0, float(silenced.abs().max()))


def test_the_lightest_units_go():
    model = MODELS["dit"]()
    groups = find_groups(model, KINDS)
    before = by_norm(model)(groups, None)
    plan = random_plan(model, KINDS, seed=3)
    new, _ = block_by_block(
        model, groups, plan, run=lambda: run(model), measure=nothing, judge=by_norm(model)
    )
    for group in groups:
        count = len(plan.kept_units(group))
        assert new.kept_units(group) == tuple(sorted(before.values[group.name].topk(count).indices.tolist()))


def test_later_blocks_are_measured_on_pruned_earlier_ones():
    model = MODELS["dit"]()
    groups = find_groups(model, KINDS)
    plan = random_plan(model, KINDS, seed=3)
    zeros = []

    def measure(members):
        zeros.append(({g.module.split(".")[1] for g in members}, silenced_blocks(model, groups)))
        return CalibrationStats()

    block_by_block(model, groups, plan, run=lambda: run(model), measure=measure, judge=by_norm(model))
    assert zeros == [({str(k)}, {str(j) for j in range(k)}) for k in range(len(zeros))]


def silenced_blocks(model, groups):
    gone = set()
    for group in groups:
        part = group.consumed_by[0]
        columns = model.get_parameter(part.path).detach().movedim(part.dim, 0).flatten(1)
        if bool((columns == 0).all(1).any()):
            gone.add(group.module.split(".")[1])
    return gone


def test_the_order_is_that_of_the_run_not_of_the_definition():
    model = MODELS["unet2d-condition"]()
    groups = find_groups(model, KINDS)
    names = [name for name, _ in in_order(model, groups, lambda: run(model))]
    down = [n for n in names if n.startswith("down")]
    up = [n for n in names if n.startswith("up")]
    assert names == [*sorted(down), "mid_block", *sorted(up)]


def test_bad_requests_are_refused_before_anything_changes():
    model = MODELS["dit"]()
    groups = find_groups(model, KINDS)
    plan = PruningPlan(kept={groups[0].name: (0,)})
    common = {"measure": nothing, "judge": by_norm(model)}
    with pytest.raises(PruningError, match="rounds of selection is 0"):
        block_by_block(model, groups, plan, run=lambda: run(model), rounds=0, **common)
    with pytest.raises(PruningError, match="the model ran without it"):
        block_by_block(model, groups, plan, run=lambda: None, **common)
    for bad, message in (
        (PruningPlan(kept={"x": (0,)}), "plan keeps units of 'x'"),
        (PruningPlan(removed_blocks=("nope",)), "removes the block 'nope'"),
    ):
        with pytest.raises(PruningError, match=message):
            block_by_block(model, groups, bad, run=lambda: run(model), **common)
    units = groups[0].num_units
    for values, message in (
        ({groups[0].name: torch.full((units,), float("nan"))}, "NaN or infinity"),
        ({groups[0].name: torch.ones(units + 1)}, rf"have shape \({units + 1},\)"),
        ({}, f"no scores for the group '{groups[0].name}'"),
    ):
        with pytest.raises(PruningError, match=message):
            block_by_block(
                model,
                groups,
                plan,
                run=lambda: run(model),
                measure=nothing,
                judge=lambda groups, stats, values=values: Scores(values),
            )
    assert torch.equal(run(model), run(MODELS["dit"]()))


def test_rounds_in_which_no_unit_would_go_are_not_measured():
    model, measured = MODELS["dit"](), []
    groups = find_groups(model, KINDS)
    gone = {groups[0].name: tuple(range(2, groups[0].num_units))}  # two units go

    def measure(members):
        measured.append([group.name for group in members])
        return CalibrationStats()

    new, _ = block_by_block(
        model,
        groups,
        PruningPlan(kept=gone),
        run=lambda: run(model),
        measure=measure,
        judge=by_norm(model),
        rounds=1000,
    )
    assert len(measured) == 2
    assert len(new.kept[groups[0].name]) == groups[0].num_units - 2
