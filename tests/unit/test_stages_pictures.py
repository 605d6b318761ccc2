"""What the report stage gathers for its pictures: contributions of heads, heads worth a look, cuts by criterion."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruning import settings as schema
from pruning.allocation import CostModel, allocate
from pruning.calibration import calibrate
from pruning.calibration.contributions import Unit, contributions
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import score
from pruning.importance.moments import consumer_columns
from pruning.models import example_call
from pruning.models.families import denoise
from pruning.recipe import Recipe
from pruning.settings import Prune, Score, Target
from pruning.stages.criteria import (
    NO_WEIGHTS,
    NOT_GATHERED,
    ONLY,
    TOO_SLOW,
    UNSEEN,
    criteria_cuts,
    reason_against,
    shares_cut,
    with_squares,
)
from pruning.stages.heads import choose_heads, image_grid, write_folding
from pruning.stages.layers import layer_costs
from pruning.types import CalibrationStats, PruningPlan, Scores
from tests import zoo
from tests.models import dit, unet2d
from tests.unit.calibration_setup import held, noised
from tests.unit.test_allocation_targets import table


@pytest.mark.parametrize("build", [dit, unet2d])
def test_contributions_are_those_of_a_dense_computation(build: Any) -> None:
    model = build()
    group = next(g for g in find_groups(model, ["attention_heads"]) if g.num_units > 1)
    columns = consumer_columns(group, dict(model.named_parameters())).unflatten(1, (group.num_units, -1))
    mean = torch.linspace(-1, 1, columns.shape[2]).double()
    units = [Unit(group, index, columns[:, index], mean) for index in (0, 1)]
    found = contributions(model, units, noised(model, 1))
    layer = model.get_submodule(group.consumer)
    rows: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].detach().double()))
    with torch.no_grad():
        for batch in noised(model, 1):
            denoise(model, batch.call)
    handle.remove()
    for unit, one in zip(units, found, strict=True):
        x = torch.stack(rows)[:, 0].unflatten(2, (group.num_units, -1))[:, :, unit.index]  # (T, N, u)
        assert torch.allclose(one.before, (x @ unit.columns.T).norm(dim=2), rtol=1e-5)
        assert torch.allclose(one.after, ((x - mean) @ unit.columns.T).norm(dim=2), rtol=1e-5)
        assert one.folded == pytest.approx(float((unit.columns @ mean).norm()))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_every_timestep_has_to_be_shown() -> None:
    model = dit()
    group = find_groups(model, ["attention_heads"])[0]
    columns = consumer_columns(group, dict(model.named_parameters())).unflatten(1, (group.num_units, -1))
    unit = Unit(group, 0, columns[:, 0], torch.zeros(columns.shape[2]).double())
    batches = held([batch for batch in noised(model, 1) if batch.bucket != 2])
    with pytest.raises(
        PruningError, match=r"one sample at every timestep bucket, .* show 1, 1, 0, 1; guidance"
    ):
        contributions(model, [unit], batches)


def head(name: str, ratio: float, *, kept: bool = True, energy: float = 0.25) -> dict[str, Any]:
    return {"group": "g", "head": name, "fluctuation_ratio": ratio, "kept": kept, "energy_share": energy}


def test_constant_heads_that_carry_output_are_shown_pruned_ones_first() -> None:
    rows = [
        head("a", 0.3),
        head("b", 0.2, kept=False),
        head("c", 0.1),
        head("silent", 0.0, energy=0.001),
        head("d", 0.9),
    ]
    assert [row["head"] for row in choose_heads(rows)] == ["c", "b", "d"]
    assert choose_heads([]) == []
    assert [row["head"] for row in choose_heads([head("only", 0.5)])] == ["only"]


def test_shares_cut_counts_units_and_removed_blocks() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    first, last = groups[0], groups[-1]
    plan = PruningPlan({first.name: (0,)}, removed_blocks=(last.module.rsplit(".", 1)[0],))
    shares = shares_cut(plan, groups)
    assert shares[0] == pytest.approx(1 - 1 / first.num_units)
    assert shares[-1] == 1.0


def test_reasons_against_a_criterion() -> None:
    model = dit()
    groups, weights = find_groups(model, ["ffn_channels"]), dict(model.named_parameters())
    stats = CalibrationStats(meta={"needs": ["input_moment", "input_sum", "row_weight"], "variants": []})
    assert reason_against("magnitude", groups, weights, stats) is None
    assert reason_against("obs", groups, weights, stats) is None
    assert reason_against("taylor", groups, weights, stats) == NOT_GATHERED
    assert reason_against("block_change", groups, weights, stats) == ONLY.format("blocks")
    assert reason_against("sink_influence", groups, weights, stats) == NO_WEIGHTS
    heads = find_groups(model, ["attention_heads"])
    gathered = CalibrationStats(meta={"needs": ["sink_mass"], "variants": []})
    assert reason_against("sink_mass", heads, weights, gathered) == UNSEEN
    big = dit(num_attention_heads=4, attention_head_dim=96)
    wide, heavy = find_groups(big, ["ffn_channels"]), dict(big.named_parameters())
    assert reason_against("obs", wide, heavy, stats) == TOO_SLOW
    assert reason_against("magnitude", wide, heavy, stats) is None


def test_squares_are_the_diagonal_of_the_units_moments() -> None:
    moment = torch.arange(8.0).view(2, 2, 2)
    stats = CalibrationStats({"g": {"input_unit_moment": moment}}, {"needs": ["input_unit_moment"]})
    found = with_squares(stats)
    assert found.values["g"]["input_sq"].tolist() == [0, 3, 4, 7]
    assert "input_sq" in found.meta["needs"]
    assert "input_sq" not in stats.values["g"]


def test_tokens_lie_in_a_grid_of_the_images_shape() -> None:
    class Shown:
        meta = dit()

    assert image_grid(Shown(), 16) == [4, 4]  # type: ignore[arg-type]
    assert image_grid(Shown(), 15) is None  # type: ignore[arg-type]


def small_run(scope: str = "global") -> Any:
    """What `criteria_cuts` asks of a run: a tiny DiT, calibrated for ``fluctuation``, planned by ``magnitude``."""
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    needs = ["input_unit_moment", "input_sum", "row_weight"]
    stats = calibrate(model, groups, noised(model), needs=needs)
    cost = CostModel.trace(model, example_call(model, 1), groups)
    prune = Prune(scope=scope, target=schema.Target(macs=0.7))
    recipe = Recipe(name="small", score=Score(criterion="magnitude"), prune=prune, seed=3)
    weights = dict(model.named_parameters())
    run = SimpleNamespace(
        recipe=recipe,
        dense=model,
        weights=weights,
        meta=model,
        groups=groups,
        stats=stats,
        cost=cost,
        costs={},
    )
    scores = score(weights, groups, criterion="magnitude", seed=3)
    run.plan = allocate(groups, scores, cost, Prune(target=Target(macs=0.7), scope=scope))
    return run


def test_criteria_are_compared_at_the_runs_own_target(caplog: pytest.LogCaptureFixture) -> None:
    run = small_run()
    found = criteria_cuts(run)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    rows = {row["name"]: row["shares"] for row in found["rows"]}
    assert set(rows) == {"magnitude", "energy", "flap", "fluctuation", "random", "wanda"}
    assert found["rows"][0]["own"]
    assert [row["own"] for row in found["rows"]].count(True) == 1
    stats = with_squares(run.stats)
    for name, shares in rows.items():
        scores = score(dict(run.dense.named_parameters()), run.groups, stats, criterion=name, seed=3)
        plan = allocate(run.groups, scores, run.cost, Prune(target=Target(macs=0.7), scope="global"))
        by_hand = [1 - len(plan.kept_units(group)) / group.num_units for group in run.groups]
        assert shares == pytest.approx(by_hand), name
    left_out = {name: entry["why"] for entry in found["left_out"] for name in entry["names"]}
    assert left_out["taylor"] == left_out["obs"] == NOT_GATHERED
    assert left_out["block_change"] == ONLY.format("blocks")


def test_a_local_scope_leaves_nothing_to_compare() -> None:
    assert set(criteria_cuts(small_run("local"))) == {"note"}


def test_a_criterion_that_refuses_is_named_with_its_words() -> None:
    run = small_run()
    found = run.stats.values[run.groups[0].consumer]
    run.stats.values[run.groups[0].consumer] = {
        name: found[name] for name in found if name != "input_unit_moment"
    }
    [refused] = [entry for entry in criteria_cuts(run)["left_out"] if "fluctuation" in entry["names"]]
    assert "'input_unit_moment' was not gathered for" in refused["why"]


def test_without_a_head_to_draw_the_reason_is_said(tmp_path: Path) -> None:
    groups = find_groups(dit(), ["attention_heads"])
    run: Any = SimpleNamespace(groups=groups)
    row = head("0", 0.5, energy=0.0) | {"group": groups[0].name}
    assert write_folding(run, [], tmp_path / "heads.safetensors") == {}
    assert write_folding(run, [row], tmp_path / "heads.safetensors") == {
        "note": "No head carries output, so none is drawn."
    }
    sana = zoo.build(zoo.ZOO["sana"])
    run = SimpleNamespace(groups=find_groups(sana, ["attention_heads"]), meta=sana)
    row = head("0", 0.5) | {"group": run.groups[0].name}
    [note] = write_folding(run, [row], tmp_path / "heads.safetensors").values()
    assert "where in the image a token lies is not known" in note
    assert not list(tmp_path.iterdir())


def layered_run(groups_of: Any = None, **plan: Any) -> Any:
    """What `layer_costs` asks of a run: a tiny DiT whose score of unit k of any group is k + 1."""
    run = small_run()
    run.groups = list(find_groups(run.dense, groups_of or ["attention_heads", "ffn_channels"]))
    run.cost = CostModel.trace(run.dense, example_call(run.dense, 1), find_groups(run.dense))
    values = {g.name: torch.arange(1.0, g.num_units + 1, dtype=torch.float64) for g in run.groups}
    run.scores = Scores(values, {"criterion": "probe_obs"})
    run.plan = PruningPlan(**plan)
    return run


def test_every_layer_says_what_it_gave_and_what_its_scores_predicted() -> None:
    heads, channels = "transformer_blocks.0.attn1:attention_heads", "transformer_blocks.1.ff:ffn_channels"
    run = layered_run(kept={heads: (1, 3), channels: tuple(range(2, 32))})
    found = layer_costs(run)
    rows = {row["group"]: row for row in found["rows"]}
    assert rows.keys() == {heads, channels}
    units = {measure: run.cost.unit_costs(measure) for measure in ("macs", "params")}
    totals = {group.name: group.num_units for group in run.groups}
    for name, gone, said in ((heads, totals[heads] - 2, 1 + 3), (channels, totals[channels] - 30, None)):
        row = rows[name]
        assert row["total"] - row["kept"] == gone
        for measure in ("macs", "params"):
            assert row["freed"][measure] == pytest.approx(units[measure][name] * gone, rel=1e-3)
        assert row["score"] == (
            said if said is not None else sum(run.scores.values[name]) - sum(range(3, 33))
        )
    assert found["dense"] == {"macs": run.cost.macs(), "params": run.cost.params()}
    assert found["plan"]["macs"] == run.cost.macs(run.plan)
    assert found["comparable"]
    assert found["errors"]


def test_of_a_removed_block_the_block_alone_is_a_layer() -> None:
    kinds = ["attention_heads", "ffn_channels", "blocks"]
    block = "transformer_blocks.1"
    run = layered_run(kinds, removed_blocks=(block,))
    [row] = layer_costs(run)["rows"]
    assert (row["module"], row["kind"], row["kept"], row["score"]) == (block, "blocks", 0, 1.0)
    assert row["freed"]["params"] == run.cost.params() - run.cost.params(run.plan)


def test_scores_below_zero_are_no_errors_and_without_a_cut_there_is_nothing_to_say() -> None:
    heads = "transformer_blocks.0.attn1:attention_heads"
    run = layered_run(kept={heads: (1, 3)})
    run.scores.values[heads] -= 10
    run.scores.meta["criterion"] = "flap"
    found = layer_costs(run)
    assert not found["errors"]
    assert not found["comparable"]
    run.plan = PruningPlan()
    assert layer_costs(run) == {}


def test_where_the_target_had_the_layers_timed_each_says_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = "transformer_blocks.0.attn1:attention_heads"
    run = layered_run(kept={heads: (1, 3)})
    timed = table(run.dense, list(find_groups(run.dense)))
    monkeypatch.setattr("pruning.stages.layers.layer_table", lambda run: timed)
    found = layer_costs(run)
    assert found["dense"]["seconds"] == timed.total()
    assert found["rows"][0]["freed"]["seconds"] == pytest.approx(timed.total() - timed.total(run.plan))
    assert found["rows"][0]["freed"]["seconds"] > 0
