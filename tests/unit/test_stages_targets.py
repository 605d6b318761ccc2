"""Targets of time and memory in a run: the table of layers, the plan that is measured, and what is said of it."""

from __future__ import annotations

import copy
import logging
import statistics
from dataclasses import replace

import pytest
import torch

from pruning.allocation import LatencyTable
from pruning.errors import PruningError
from pruning.files import read_json
from pruning.groups import find_groups
from pruning.models import first_answer
from pruning.recipe import load_recipe
from pruning.stages import layer_times, targets
from pruning.stages.dryrun import dry_run
from pruning.stages.layer_times import Layer, Stopwatch, measure_table
from pruning.stages.run import Run
from pruning.stages.runner import run_recipe
from pruning.types import PruningPlan
from tests.models import MODELS, call, dit
from tests.unit.test_allocation_targets import table

QUICK = (
    "score.criterion=magnitude",
    "calibrate.num_samples=2",
    "calibrate.diagnostics=false",
    "evaluate.latency.batch_size=1",
    "evaluate.latency.threads=1",
)


@pytest.mark.parametrize("family", ["dit", "unet2d-condition"])
def test_layers_are_timed_at_several_widths(family, monkeypatch):
    monkeypatch.setattr(layer_times, "PROBES", 1)
    monkeypatch.setattr(layer_times, "_rounds", lambda *_: 1)
    model = MODELS[family]().eval()
    groups, inputs = find_groups(model), call(model, batch_size=1)
    before = copy.deepcopy(model.state_dict())
    done = []
    found = measure_table(model, groups, inputs, threads=1, progress=lambda a, b: done.append((a, b)))
    units = [group for group in groups if group.kind != "blocks"]
    assert found.curve_of.keys() == {group.name for group in units}
    assert found.seconds.keys() == {group.name for group in groups}
    assert min(found.seconds.values()) > 0
    assert found.total() == found.call_s > 0
    for group in units:
        curve = found.curves[found.curve_of[group.name]]
        assert curve.kept[-1] == group.num_units
        assert curve.share[-1] == 1.0
        assert len(curve.kept) >= min(group.num_units - group.min_units + 1, 3)
        assert list(curve.kept) == sorted(set(curve.kept))
    assert done[-1][0] == done[-1][1] == found.meta["probes"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_equal_layers_share_a_curve():
    model = dit(num_layers=3).eval()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    layers = layer_times._layers(model, groups, call(model, batch_size=1))
    assert [layer.path for layer in layers] == [group.module for group in groups]
    assert len({layer.kind for layer in layers}) == 2


def test_every_kind_is_seen_at_every_width_and_one_layer_of_a_site_at_a_time():
    model = dit(num_layers=3)
    groups = {group.name: group for group in find_groups(model, ["attention_heads", "ffn_channels"])}
    block = [
        Layer(group, name.rpartition(".")[0], group.kind) for name, group in groups.items()
    ]  # as where two groups of a block are cut in one fused projection
    sites = layer_times._sites(block)
    assert [len(site) for site in sites] == [2, 2, 2]
    widths = {"attention_heads": [(3, True), (2, True), (1, True)], "ffn_channels": [(64, True), (63, False)]}
    probes = layer_times._probes(sites, widths, block)
    for probe in probes:
        assert len({layer.path for layer, _ in probe}) == len(probe) == 3
    seen = {(layer.kind, width) for probe in probes for layer, width in probe}
    assert seen == {(kind, width) for kind, own in widths.items() for width in own}


def test_a_layer_alone_in_its_shape_is_seen_at_every_width():
    model = dit(num_layers=1)
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    layers = [Layer(group, group.module, group.kind) for group in groups]
    widths = layer_times._widths(layers)
    probes = layer_times._probes(layer_times._sites(layers), widths, layers)
    seen = {(layer.kind, width) for probe in probes for layer, width in probe}
    assert seen == {(kind, width) for kind, own in widths.items() for width in own}


def test_widths_are_as_even_as_can_be_and_a_few_are_not():
    group = replace(find_groups(dit(), ["ffn_channels"])[0], num_units=512, unit_size=1)
    widths = layer_times._widths([Layer(group, group.module, "ff")])["ff"]
    assert {kept for kept, on_curve in widths if on_curve} == {*range(32, 512, 32)}
    assert len([kept for kept, on_curve in widths if not on_curve]) == 2
    norm = replace(group, num_units=32, unit_size=10)
    kept = [units for units, on_curve in layer_times._widths([Layer(norm, "r", "r")])["r"] if on_curve]
    assert kept == sorted(kept, reverse=True)
    few = replace(group, num_units=6, unit_size=32)
    assert [units for units, _ in layer_times._widths([Layer(few, "a", "a")])["a"]] == [5, 4, 3, 2, 1]


def test_a_stopwatch_adds_up_calls_of_a_module_and_leaves_nothing():
    model, now = dit(num_layers=1).eval(), [0.0]
    watch = Stopwatch(model, ["", "transformer_blocks.0.ff"], threads=1)
    watch._clock = lambda: now.append(now[-1] + 1.0) or now[-1]
    with torch.no_grad():
        watch.time(lambda: first_answer(model, call(model, batch_size=1)))
    assert watch.calls == [{"transformer_blocks.0.ff": 1.0, "": 3.0}]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_curves_rise_with_the_width_and_steps_are_pooled_by_kind():
    group = replace(find_groups(dit(), ["ffn_channels"])[0], num_units=64, unit_size=1)
    layers = [Layer(group, group.module, "ff")]
    shares = {
        ("ff", (16, True)): [0.3, 0.32],
        ("ff", (32, True)): [0.28, 0.26],  # noise: it cannot be less than the narrower one
        ("ff", (48, True)): [0.8, 0.8],
        ("ff", (40, False)): [0.66, 0.66],
        ("ff", (47, False)): [0.5, 0.9],
    }
    curve = layer_times._curve("ff", shares, layers)
    assert curve.kept == (16, 32, 48, 64)
    assert curve.share == (pytest.approx(0.29), pytest.approx(0.29), 0.8, 1.0)
    steps = layer_times._steps(shares, layers, {"ff": curve})["ffn_channels"]
    assert steps["64"] == steps["16"] == 1.0
    assert steps["8"] == pytest.approx(0.66 / (0.29 + 0.51 / 2))
    assert steps["1"] == steps["8"]  # 47 is within its spread


# In a run.


@pytest.fixture
def known(monkeypatch):
    """A table by hand, and times of slim models that are `wrong` times those which it predicts."""
    made, wrong = [], [1.0]

    def by_hand(model, groups, inputs, *, threads, progress):
        made.append(threads)
        meta = {
            "batch_size": 1,
            "threads": 1,
            "layers": 12,
            "kinds_of_layers": 2,
            "calls": 1,
            "layers_share": 0.8,
        }
        return replace(table(model, groups), meta=meta)

    def timed(subject, slim):
        kept = slim.config["_structured_pruning"]["plan"]
        share = table(subject.dense, subject.groups).total(PruningPlan.from_dict(kept))
        return {"dense": [1.0] * 7, "slim": [share * wrong[0]] * 7}

    monkeypatch.setattr(targets, "measure_table", by_hand)
    monkeypatch.setattr(targets, "_timed", timed)
    return made, wrong


def test_a_plan_is_measured_before_it_is_believed(tmp_path, known, caplog):
    made, _ = known
    run_dir = f"run_dir={tmp_path / 'runs' / 'q'}"
    with caplog.at_level(logging.INFO):
        run_recipe("quickstart", [*QUICK, "prune.target.latency=0.75", run_dir], until="plan", progress=False)
    assert made == [1]
    found = read_json(tmp_path / "runs/q/plan/targets.json")
    assert found["first"] is None
    row = found["targets"]["latency"]
    assert row["predicted"] == pytest.approx(0.75, abs=0.01)
    assert row["gap"] == pytest.approx(0)
    assert row["said"]["gap"] == "+0.0 %"
    assert "target 0.75 of the dense latency: predicted 0.7" in caplog.text
    plan = PruningPlan.load(tmp_path / "runs/q/plan/plan.json")
    assert plan.meta["targets"] == found["targets"]
    # Another target takes the table from the store.
    run_recipe("quickstart", [*QUICK, "prune.target.latency=0.85", run_dir], until="plan", progress=False)
    assert made == [1]


def test_a_prediction_that_was_wrong_is_corrected_once(tmp_path, known, caplog):
    _, wrong = known
    wrong[0] = 1.1
    run_dir = f"run_dir={tmp_path / 'runs' / 'q'}"
    with caplog.at_level(logging.INFO):
        run_recipe("quickstart", [*QUICK, "prune.target.latency=0.8", run_dir], until="plan", progress=False)
    found = read_json(tmp_path / "runs/q/plan/targets.json")
    assert found["first"]["latency"]["gap"] == pytest.approx(0.1)
    row = found["targets"]["latency"]
    assert row["measured"] == pytest.approx(0.8, rel=0.02)
    assert abs(row["gap"]) < 0.02
    assert "the plan is made anew with what was measured (latency)" in caplog.text
    assert "misses by" not in caplog.text


def test_what_stays_wrong_is_said(tmp_path, known, caplog, monkeypatch):
    ratios = iter([0.86, 0.97])
    monkeypatch.setattr(targets, "_timed", lambda *_: {"dense": [1.0] * 7, "slim": [next(ratios)] * 7})
    run_dir = f"run_dir={tmp_path / 'runs' / 'q'}"
    with caplog.at_level(logging.INFO):
        run_recipe("quickstart", [*QUICK, "prune.target.latency=0.8", run_dir], until="plan", progress=False)
    row = read_json(tmp_path / "runs/q/plan/targets.json")["targets"]["latency"]
    assert row["measured"] == pytest.approx(0.86)  # the try that came nearer
    assert "prune.target: measured, the plan misses by 7.5 %" in caplog.text


def test_a_plan_stays_where_what_was_measured_leaves_none(tmp_path, known, caplog):
    _, wrong = known
    wrong[0] = 1.3
    run_dir = f"run_dir={tmp_path / 'runs' / 'q'}"
    with caplog.at_level(logging.INFO):
        run_recipe("quickstart", [*QUICK, "prune.target.latency=0.75", run_dir], until="plan", progress=False)
    row = read_json(tmp_path / "runs/q/plan/targets.json")["targets"]["latency"]
    assert row["measured"] == pytest.approx(0.975, rel=0.02)
    assert "with what was measured the target cannot be met, so the plan stays: target 0.75" in caplog.text


def test_memory_and_counts_are_held_with_time(tmp_path, known):
    run_dir = f"run_dir={tmp_path / 'runs' / 'q'}"
    asked = ["prune.target.latency=0.9", "prune.target.macs=0.9", "prune.target.memory_gb=0.0075"]
    run_recipe("quickstart", [*QUICK, *asked, run_dir], until="plan", progress=False)
    found = read_json(tmp_path / "runs/q/plan/targets.json")["targets"]
    assert found.keys() == {"macs", "latency", "memory_gb"}
    memory = found["memory_gb"]
    assert memory["binds"]
    assert memory["measured"] == pytest.approx(0.0075e9, rel=0.01)
    assert abs(memory["gap"]) < 1e-3
    assert memory["said"]["measured"] == f"{memory['measured'] / 1e9:,.4g} GB"
    assert found["macs"]["measured"] == found["macs"]["predicted"]


def test_a_target_out_of_reach_is_refused_before_the_work(tmp_path, known):
    run_dir = f"run_dir={tmp_path / 'runs' / 'q'}"
    with pytest.raises(
        PruningError, match=r"target 0\.3 of the dense latency: needs 300 ms, .* least reachable"
    ):
        run_recipe("quickstart", [*QUICK, "prune.target.latency=0.3", run_dir], progress=False)
    assert not (tmp_path / "runs/q/calibrate").exists()


def test_a_dry_run_takes_time_to_fall_as_macs_do_until_it_is_measured(tmp_path, known, caplog):
    made, _ = known
    overrides = [*QUICK, "prune.target.latency=0.8", f"run_dir={tmp_path / 'runs' / 'q'}"]
    found = dry_run(Run(load_recipe("quickstart", overrides), progress=False))
    assert "the layers have not been timed on this device yet" in caplog.text
    assert found["plan"]["targets"]["latency"]["said"]["predicted"].endswith("of dense")
    assert found["plan"]["macs_ratio"] == pytest.approx(0.8, abs=0.02)
    assert not made
    run_recipe("quickstart", overrides, until="plan", progress=False)
    caplog.clear()
    dry_run(Run(load_recipe("quickstart", overrides), progress=False))
    assert "not been timed" not in caplog.text


def test_a_search_of_blocks_is_under_what_is_counted():
    with pytest.raises(
        PruningError, match="done under one target of macs, params or ratio, and the target is"
    ):
        load_recipe(
            "quickstart", ["prune.kinds=[blocks]", "prune.depth.budget=3", "prune.target.latency=0.8"]
        )


def test_shares_of_the_table_are_medians(monkeypatch):
    monkeypatch.setattr(layer_times, "PROBES", 1)
    monkeypatch.setattr(layer_times, "_rounds", lambda *_: 3)
    model = dit(num_layers=1).eval()
    groups = find_groups(model, ["attention_heads"])
    found = measure_table(model, groups, call(model, batch_size=1), threads=1)
    assert isinstance(found, LatencyTable)
    assert found.meta["rounds"] == 3
    assert 0 < statistics.median(found.curves[found.curve_of[groups[0].name]].share) < 2
