"""Weights in a smaller form: what is lost is what is said, copies are found, and nothing in a config is trusted."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from pruning.allocation import CostModel, allocate, choose_blocks
from pruning.checkpoint import load, save
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.groups.modulation import break_even, copies, modulation_layers, repeated
from pruning.settings import Depth, Prune, Target
from pruning.surgery import RANK_NEEDS, apply_plan, choose_ranks, mask_plan, reshape, take_low_rank
from pruning.surgery.low_rank import LowRankLinear
from pruning.surgery.shared import Shared
from pruning.types import PRUNING_KEY, CalibrationStats, PruningPlan, Scores
from tests.models import call, dit, run, unet2d
from tests.unit.importance_rows import sums

LAYERS = [f"transformer_blocks.{k}.norm1.linear" for k in range(3)]
EMBEDDERS = [f"transformer_blocks.{k}.norm1.emb" for k in range(3)]


def twins() -> nn.Module:
    """Return a tiny DiT whose blocks have equal embedders, as converted checkpoints have."""
    model = dit()
    for path in EMBEDDERS[1:]:
        model.get_submodule(path).load_state_dict(model.get_submodule(EMBEDDERS[0]).state_dict())
    return model


def rows(layer: nn.Module, *, directions: int, seed: int) -> Tensor:
    """Return inputs of a layer around a mean in so many directions, of which the last are weak, and a little noise."""
    shape = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(layer.in_features, directions, generator=shape).double()).Q
    strength = 0.5 ** torch.arange(directions).double()
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(400, directions, generator=draw).double() * strength
    noise = torch.randn(400, layer.in_features, generator=draw).double()
    return 1.0 + x @ basis.T + 1e-4 * noise


def measured(model: nn.Module, seed: int, directions: int = 6) -> CalibrationStats:
    found = modulation_layers(model, find_groups(model))
    inputs = {
        one.name: rows(model.get_submodule(one.module), directions=directions, seed=seed) for one in found
    }
    return CalibrationStats({name: sums(x, x.shape[1]) for name, x in inputs.items()})


def test_layers_and_embedders_are_found():
    model = dit()
    groups = find_groups(model)
    assert [one.module for one in modulation_layers(model, groups)] == LAYERS
    assert repeated(model, groups) == [tuple(EMBEDDERS)]
    assert copies(model, groups) == ()
    assert copies(twins(), groups) == (tuple(EMBEDDERS),)
    assert not modulation_layers(unet2d(), find_groups(unet2d()))


def test_the_loss_is_what_is_said_of_rows_that_the_choice_did_not_see():
    model = dit()
    layers = modulation_layers(model, find_groups(model))
    fit, held_out = measured(model, seed=1), measured(model, seed=2)
    found = choose_ranks(model, layers, fit, held_out, error=0.05)
    slim = copy.deepcopy(model)
    take_low_rank(slim, found)
    for path, one in found.items():
        assert 1 <= one.rank < 6
        x = rows(model.get_submodule(path), directions=6, seed=2).float()
        before, after = model.get_submodule(path)(x), slim.get_submodule(path)(x)
        lost = (after - before).square().sum() / (before - before.mean(0)).square().sum()
        assert one.lost == pytest.approx(lost.item(), rel=1e-3)
        assert 0 < one.lost <= 0.05
        worse = choose_ranks(model, layers, fit, held_out, error=0.05 * one.lost)[path]
        assert worse.rank > one.rank


def test_the_mean_of_the_output_stays():
    model = dit()
    layers, fit = modulation_layers(model, find_groups(model)), measured(model, seed=1)
    slim, found = copy.deepcopy(model), choose_ranks(model, layers, fit, fit, error=0.99)
    assert found[LAYERS[0]].rank == 1
    take_low_rank(slim, found)
    x = rows(model.get_submodule(LAYERS[0]), directions=6, seed=1).float()
    means = [m.get_submodule(LAYERS[0])(x).mean(0) for m in (model, slim)]
    assert torch.allclose(*means, atol=1e-5)


def test_rows_in_few_directions_cost_nothing_where_truncation_does():
    model = dit()
    layers, fit = modulation_layers(model, find_groups(model)), measured(model, seed=1, directions=2)
    slim, found = copy.deepcopy(model), choose_ranks(model, layers, fit, fit, error=1e-4)
    assert found[LAYERS[0]].rank == 2
    take_low_rank(slim, found)
    blind = apply_plan(copy.deepcopy(model), PruningPlan(ranks={LAYERS[0]: 2}))
    x = rows(model.get_submodule(LAYERS[0]), directions=2, seed=3).float()
    dense, informed, truncated = (m.get_submodule(LAYERS[0])(x) for m in (model, slim, blind))
    assert (informed - dense).abs().max() < 1e-2 * (truncated - dense).abs().max()


def test_ranks_that_save_nothing_are_not_taken():
    model = dit()
    layers = modulation_layers(model, find_groups(model))
    fit, held_out = measured(model, 1, directions=32), measured(model, 2, directions=32)
    found = choose_ranks(model, layers, fit, held_out, error=1e-9)
    assert set(found.values()) == {None}
    rounded = choose_ranks(model, layers, fit, held_out, error=0.05, multiple=4)
    assert all(one.rank % 4 == 0 for one in rounded.values())
    with pytest.raises(PruningError, match=r"asked to lose 1.5, .* must lie in \(0, 1\)"):
        choose_ranks(model, layers, fit, held_out, error=1.5)
    with pytest.raises(PruningError, match="was not gathered"):
        choose_ranks(model, layers, fit, CalibrationStats(), error=0.1)
    with pytest.raises(PruningError, match=r"low-rank form of 'nowhere': it is no module"):
        take_low_rank(model, {"nowhere": rounded[LAYERS[0]]})
    with pytest.raises(PruningError, match=r"'proj_out_1': it is of 32 -> 192, the layer is another"):
        take_low_rank(model, {"proj_out_1": rounded[LAYERS[0]]})
    assert not any(isinstance(module, LowRankLinear) for module in model.modules())
    assert {"input_moment", "input_sum", "row_weight"} == RANK_NEEDS


def test_shared_copies_say_the_same_and_outlive_their_owner(tmp_path):
    model = twins()
    groups = find_groups(model)
    sets = copies(model, groups)
    shared = apply_plan(copy.deepcopy(model), PruningPlan(shared=sets), groups)
    assert torch.equal(run(shared), run(model))
    assert sum(isinstance(module, Shared) for module in shared.modules()) == 2

    plan = PruningPlan(
        removed_blocks=("transformer_blocks.1",),
        shared=((EMBEDDERS[1], EMBEDDERS[2]),),
        ranks=dict.fromkeys(LAYERS, 3),
    )
    cut = apply_plan(copy.deepcopy(model), plan, groups)
    assert torch.allclose(run(cut), run(mask_plan(model, plan, groups)), atol=1e-5)
    assert cut.config.num_layers == 2
    assert "shared" not in cut.config[PRUNING_KEY]
    cost = CostModel.trace(model, call(model), groups)
    assert cost.params(plan) == sum(p.numel() for p in cut.parameters())
    save(cut, tmp_path)
    assert torch.equal(run(load(tmp_path)), run(cut))

    pair = apply_plan(copy.deepcopy(model), PruningPlan(shared=plan.shared), groups)
    before = run(mask_plan(pair, PruningPlan(removed_blocks=plan.removed_blocks)))
    again = apply_plan(pair, PruningPlan(removed_blocks=plan.removed_blocks))
    assert not any(isinstance(module, Shared) for module in again.modules())
    assert torch.equal(run(again), before)
    shared = apply_plan(shared, PruningPlan(removed_blocks=plan.removed_blocks))
    assert shared.config[PRUNING_KEY]["shared"] == {EMBEDDERS[1]: EMBEDDERS[0]}
    save(shared, tmp_path / "shared")
    assert torch.equal(run(load(tmp_path / "shared")), run(shared))


def test_a_model_in_a_smaller_form_can_be_copied_trained_and_cut_again():
    model = twins()
    groups = find_groups(model)
    cut = apply_plan(model, PruningPlan(shared=copies(model, groups), ranks={LAYERS[1]: 3}), groups)
    other = copy.deepcopy(cut)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.mul_(0.5)
    assert not torch.equal(run(other), run(cut))
    assert all(other.get_submodule(path).owner is other.get_submodule(EMBEDDERS[0]) for path in EMBEDDERS[1:])
    other(**call(other)).sample.square().mean().backward()
    assert all(p.grad is not None for p in other.get_submodule(EMBEDDERS[0]).parameters() if p.ndim > 1)
    again = PruningPlan(kept={groups[0].name: (0,)}, ranks={LAYERS[0]: 2, LAYERS[1]: 3})
    masked = run(mask_plan(other, again))
    assert torch.allclose(run(apply_plan(other, again)), masked, atol=1e-5)


def test_the_target_counts_what_is_decided(caplog):
    model = dit()
    groups = find_groups(model)
    widths = [group for group in groups if group.kind != "blocks"]
    cost = CostModel.trace(model, call(model), groups)
    start = PruningPlan(ranks=dict.fromkeys(LAYERS, 2), shared=tuple(repeated(model, groups)))

    def planned(**target: float) -> PruningPlan:
        return allocate(widths, None, cost, Prune(target=Target(**target), scope="local"), start=start)

    plan = planned(params=0.4)
    assert plan.ranks == start.ranks
    assert plan.shared == start.shared
    assert plan.kept
    assert cost.params(plan) == pytest.approx(0.4 * cost.params(), rel=0.02)
    ratio = planned(ratio=0.5)
    alone = allocate(widths, None, cost, Prune(target=Target(ratio=0.5), scope="local"))
    assert ratio.kept == alone.kept
    enough = planned(params=0.95)
    assert not enough.meta["hit"]
    assert "what is decided already frees more than asked" in caplog.text
    assert not enough.kept


def test_a_search_of_blocks_keeps_them_and_the_target():
    model = dit(num_layers=8)
    groups = [group for group in find_groups(model) if group.kind == "blocks"]
    cost = CostModel.trace(model, call(model), find_groups(model))
    layers = [f"transformer_blocks.{k}.norm1.linear" for k in range(8)]
    start = PruningPlan(base_hash="abc", ranks=dict.fromkeys(layers, 2))
    settings = Prune(target=Target(params=0.5), kinds=["blocks"], depth=Depth(budget=12))
    scores = Scores({group.name: torch.tensor([float(k)]) for k, group in enumerate(groups)})
    plan = allocate(groups, scores, cost, settings, start=start)

    def measure(removed: tuple[str, ...]) -> float:
        return len(removed) + 2.0 * ("transformer_blocks.1" in removed)

    found, trace = choose_blocks(groups, scores, cost, settings, plan, measure)
    assert "transformer_blocks.1" in plan.removed_blocks
    assert "transformer_blocks.1" not in found.removed_blocks
    assert trace["kept"] is None
    assert (found.ranks, found.base_hash) == (start.ranks, "abc")
    assert found.meta["got"] == plan.meta["got"] == cost.params(found)


def test_a_plan_keeps_them_and_says_what_is_wrong(tmp_path):
    plan = PruningPlan(ranks={LAYERS[0]: 2}, shared=(tuple(EMBEDDERS),))
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert not {"ranks", "shared"} & set(json.loads(json.dumps(PruningPlan().to_dict())))
    for changes, words in (
        ({"ranks": {LAYERS[0]: 0}}, "whole numbers from 1"),
        ({"ranks": [3]}, "must map module paths"),
        ({"shared": [["a"]]}, "lists of two or more paths"),
        ({"shared": [["a", "b"], ["b", "c"]]}, "all distinct"),
    ):
        with pytest.raises(PruningError, match=words):
            PruningPlan.from_dict({**plan.to_dict(), **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": {LAYERS[0]: 10_000}}, "rank 10000 saves nothing; of 32 -> 192 it may be 1 to 27"),
        ({"ranks": {"transformer_blocks.9": 2}}, "it is no module of DiTTransformer2DModel"),
        ({"ranks": {"transformer_blocks.0.norm1": 2}}, "AdaLayerNormZero is no linear layer"),
        ({"ranks": {"transformer_blocks.0.attn1.to_q": 2}}, "a group has its channels"),
        ({"shared": ((EMBEDDERS[0], "nowhere"),)}, "'nowhere' is no module"),
        ({"shared": ((EMBEDDERS[0], f"{EMBEDDERS[0]}.timestep_embedder"),)}, "lie in one another"),
        ({"shared": ((EMBEDDERS[0], "pos_embed"),)}, "only modules of one class may become one"),
        ({"shared": (("transformer_blocks.0", "transformer_blocks.1"),)}, "takes a smaller form by itself"),
        ({"shared": ((EMBEDDERS[0], EMBEDDERS[1]), (EMBEDDERS[1], EMBEDDERS[2]))}, "named twice"),
        (
            {
                "shared": (
                    (EMBEDDERS[0], EMBEDDERS[1]),
                    tuple(f"{path}.timestep_embedder" for path in EMBEDDERS[1:]),
                )
            },
            "lies in another that is shared",
        ),
    ],
)
def test_a_plan_that_does_not_fit_changes_nothing(changes, words):
    model = dit()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PruningError, match=words):
        apply_plan(model, PruningPlan(**changes))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": {f"{LAYERS[0]}.up": 3}}, "part of a low-rank form already"),
        ({"ranks": {LAYERS[0]: 3}}, "of rank 6, not 3"),
        ({"shared": ((EMBEDDERS[2], EMBEDDERS[0]),)}, f"in the place of '{EMBEDDERS[1]}'; name .* first"),
    ],
)
def test_a_plan_that_does_not_fit_earlier_smaller_forms_is_refused(changes, words):
    model = apply_plan(dit(), PruningPlan(ranks={LAYERS[0]: 6}, shared=((EMBEDDERS[0], EMBEDDERS[1]),)))
    for do in (apply_plan, mask_plan):
        with pytest.raises(PruningError, match=words):
            do(model, PruningPlan(**changes))


def nested(depth: int = 100_000) -> list:
    """Return a list in a list and so on, which has no representation."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"ranks": 3}, "must map module paths"),
        ({"ranks": {"nowhere": 3}}, "'nowhere' is no module"),
        ({"ranks": {LAYERS[0]: 28}}, "rank 28 saves nothing"),
        ({"ranks": {LAYERS[0]: True}}, "rank True saves nothing"),
        ({"ranks": {"": 2}}, "no linear layer"),
        ({"ranks": {LAYERS[1]: 2}, "removed_blocks": ["transformer_blocks.1"]}, "is no module"),
        ({"shared": {EMBEDDERS[0]: EMBEDDERS[0]}}, "must be served by a module that no other serves"),
        ({"shared": {EMBEDDERS[0]: EMBEDDERS[1], EMBEDDERS[1]: EMBEDDERS[0]}}, "that no other serves"),
        ({"shared": {EMBEDDERS[0]: 7}}, "that no other serves, found 7"),
        ({"shared": {EMBEDDERS[0]: "pos_embed"}}, "only modules of one class"),
        (
            {"shared": {EMBEDDERS[0]: EMBEDDERS[1]}, "removed_blocks": ["transformer_blocks.1"]},
            "no other serves",
        ),
        ({"shared": {"": EMBEDDERS[0]}}, "no module"),
        ({"ranks": nested()}, "found a value of type list too large to show"),
        ({"ranks": {LAYERS[0]: nested()}}, "rank a value of type list too large to show saves nothing"),
        ({"ranks": {LAYERS[0]: 10**5000}}, "rank a value of type int too large to show saves nothing"),
    ],
)
def test_an_entry_of_a_config_is_not_trusted(entry, words):
    model = dit()
    groups = {group.module: group for group in find_groups(model)}
    whole = {"format_version": 1, "modules": {}, "removed_blocks": [], **entry}
    with pytest.raises(PruningError, match=words):
        reshape(model, whole)
    assert not any(isinstance(module, (LowRankLinear, Shared)) for module in model.modules())
    assert groups.keys() == {group.module for group in find_groups(model)}


def test_a_layer_of_zeros_takes_no_form_and_one_without_bias_does():
    model = dit()
    groups = find_groups(model)
    layers, fit = modulation_layers(model, groups), measured(model, seed=1)
    layer = model.get_submodule(LAYERS[0])
    bare = model.get_submodule(LAYERS[1])
    bare.bias = None
    with torch.no_grad():
        layer.weight.zero_()
    found = choose_ranks(model, layers, fit, fit, error=0.05)
    assert found[LAYERS[0]] is None
    assert found[LAYERS[1]].bias is None
    x = rows(bare, directions=6, seed=1).float()
    before = bare(x)
    take_low_rank(model, {LAYERS[1]: found[LAYERS[1]]})
    after = model.get_submodule(LAYERS[1])(x)
    assert found[LAYERS[1]].lost == pytest.approx(
        ((after - before).square().sum() / before.square().sum()).item(), rel=1e-2
    )


@pytest.mark.parametrize("where", ["weight", "fit", "held out"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(where, value):
    model = dit()
    layers = modulation_layers(model, find_groups(model))
    seen = {"fit": measured(model, seed=1), "held out": measured(model, seed=2)}
    if where == "weight":
        model.get_submodule(LAYERS[1]).weight.data[0, 0] = value
    else:
        seen[where].get(layers[1].name, "input_moment").view(-1)[0] = value
    with pytest.raises(PruningError, match=rf"'{LAYERS[1]}:modulation': its weights or .* not finite"):
        choose_ranks(model, layers, *seen.values(), error=0.05)


def test_where_held_out_rows_are_all_the_same_nothing_is_known_of_the_loss(caplog):
    model = dit()
    layers = modulation_layers(model, find_groups(model))
    same = rows(model.get_submodule(LAYERS[0]), directions=6, seed=1)[:1].expand(40, -1)
    constant = CalibrationStats({one.name: sums(same, same.shape[1]) for one in layers})
    for fit in (measured(model, seed=1), constant):
        assert set(choose_ranks(model, layers, fit, constant, error=0.5).values()) == {None}
    assert f"{LAYERS[0]} stays whole: its held-out rows are all the same" in caplog.text


def test_what_serves_for_others_is_in_their_mode():
    cut = apply_plan(twins().eval(), PruningPlan(shared=(tuple(EMBEDDERS),)))
    assert not any(module.training for module in cut.modules())


def test_break_even_is_where_it_says():
    layer = nn.Linear(32, 192)
    most = break_even(layer)
    assert most * (32 + 192) < 32 * 192 <= (most + 1) * (32 + 192)
