"""Several plans for one target in a run: which there are, how they are measured, which one is taken."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from eval.run import measure_all
from eval.types import Context, Subject
from pruning.errors import PruningError
from pruning.files import read_json
from pruning.models import denoise
from pruning.recipe import Recipe
from pruning.settings import Calibrate, Depth, Model, Prune, Target
from pruning.settings.candidates import CANDIDATES, Candidate
from pruning.stages import choosing, judging, preflight, targets
from pruning.stages.candidates import candidates_of, further_criteria, names_of
from pruning.stages.choosing import architecture, choose, figures
from pruning.stages.dryrun import dry_run
from pruning.stages.judging import Judge
from pruning.stages.run import Run
from pruning.stages.runner import run_recipe
from pruning.store import Store
from pruning.types import PruningPlan
from tests.models import dit, unet2d

KINDS = ["attention_heads", "ffn_channels"]


def recipe_of(place: Path, model: Any = None, **prune: Any) -> Recipe:
    model = dit(sample_size=16) if model is None else model
    part = "unet" if "UNet" in type(model).__name__ else "transformer"
    if not (place / "model").exists():
        model.save_pretrained(place / "model" / part)
        DDIMScheduler().save_pretrained(place / "model" / "scheduler")
    asked: dict[str, Any] = {
        "kinds": KINDS,
        "target": Target(macs=0.7),
        "candidates": 5,
        "candidate_samples": 4,
        **prune,
    }
    return Recipe(
        name="r",
        device="cpu",
        run_dir=str(place / "runs/r"),
        model=Model(source=str(place / "model")),
        calibrate=Calibrate(num_samples=4, batch_size=2, timestep_buckets=2, diagnostics=False),
        prune=Prune(**asked),
    )


def test_without_blocks_no_candidate_is_about_them(tmp_path):
    found = candidates_of(Run(recipe_of(tmp_path, candidates=len(CANDIDATES))))
    assert found[0].is_own
    assert all(one.depth is None for one in found)
    more = candidates_of(Run(recipe_of(tmp_path, candidates=len(CANDIDATES), kinds=[*KINDS, "blocks"])))
    assert {one.depth for one in more} > {None, 0.0}
    measured = recipe_of(tmp_path, candidates=len(CANDIDATES), kinds=[*KINDS, "blocks"])
    measured = dataclasses.replace(
        measured, prune=dataclasses.replace(measured.prune, target=Target(latency=0.6))
    )
    assert {one.depth for one in candidates_of(Run(measured))} == {None, 0.0}


def test_candidates_that_come_to_the_same_are_there_once(tmp_path):
    for scope in ("global", "local"):
        run = Run(recipe_of(tmp_path, candidates=len(CANDIDATES), scope=scope))
        found = candidates_of(run)
        default = Candidate(("probe_obs",), "global")
        assert (default in found) == (scope == "local")  # else it is the recipe's own
        assert (Candidate(allocation="uniform") in found) == (scope == "global")
    assert candidates_of(Run(recipe_of(tmp_path, candidates=1))) == [Candidate()]
    assert further_criteria(Run(recipe_of(tmp_path, candidates=1))) == []


def test_criteria_that_need_targets_are_left_out_where_there_are_none(tmp_path):
    recipe = recipe_of(tmp_path, candidates=len(CANDIDATES))
    assert "taylor" in further_criteria(Run(recipe))
    sampling = dataclasses.replace(
        recipe, calibrate=dataclasses.replace(recipe.calibrate, provider="sampling")
    )
    assert "taylor" not in further_criteria(Run(sampling))
    assert "obs" in further_criteria(Run(sampling))


def test_the_best_of_several_plans_goes_on(tmp_path):
    recipe = recipe_of(tmp_path)
    run_recipe(recipe, until="prune", progress=False)
    plan_folder = tmp_path / "runs/r/plan"
    trace = read_json(plan_folder / "candidates.json")
    assert trace is not None
    rows = trace["rows"]
    assert [row["name"] for row in rows] == names_of(Run(recipe))
    best = rows[trace["chosen"]]
    able = [row for row in rows if row["why"] is None and row["meets"]]
    assert best["excess_error"] == min(row["excess_error"] for row in able)
    assert [row["chosen"] for row in rows].count(True) == 1
    assert trace["samples"] == 4
    assert trace["held_out"]
    for row in able:
        low, high = row["excess_error_ci95"]
        assert low <= row["excess_error"] <= high
        assert row["macs_ratio"] == pytest.approx(0.7, abs=0.05)
    plan = PruningPlan.load(plan_folder / "plan.json")
    assert plan.meta["candidate"] == best["name"]
    assert architecture(plan) == best["architecture"]
    said = read_json(plan_folder / "manifest.json")
    summary = read_json(tmp_path / "runs/r/summary.json")
    assert said is not None
    assert summary is not None
    assert summary["candidates"] == said["result"]["candidates"] == figures(trace)
    cut = PruningPlan.load(tmp_path / "runs/r/prune/plan.json")
    assert architecture(cut) == architecture(plan)


def test_the_error_is_that_of_the_model_that_the_run_cuts(tmp_path):
    recipe = recipe_of(tmp_path)
    run_recipe(recipe, until="prune", progress=False)
    run = Run(recipe, progress=False)
    trace = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert trace is not None
    slim = run.load_pruned()
    subjects = {
        name: Subject(predict=torch.no_grad()(lambda call, model=model: denoise(model, call)))
        for name, model in (("dense", run.dense), ("slim", slim))
    }
    shown = judging.unseen_by_calibration(run)
    found = measure_all(Context(subjects, noised=lambda: shown), ["denoising"])["slim"]
    best = trace["rows"][trace["chosen"]]
    assert found["excess_error"] == pytest.approx(best["excess_error"], rel=1e-4)
    assert found["excess_error_ci95"] == pytest.approx(best["excess_error_ci95"], rel=1e-4)
    seen = {int(i) for batch in shown for i in batch.sample_ids}
    chosen = run.choose("train", recipe.calibrate.num_samples)
    assert len(seen) == 4
    assert not {*run.choose("train", 4, skip=len(chosen))} & {*chosen}


def test_what_was_measured_is_not_measured_again_after_a_kill(tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path)
    measured: list[str] = []
    original = Judge.__call__

    def counted(self: Judge, plan: PruningPlan):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(architecture(plan))
        return original(self, plan)

    monkeypatch.setattr(Judge, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, until="plan", progress=False)
    before, again = [*measured], []

    def noted(self: Judge, plan: PruningPlan):
        again.append(architecture(plan))
        return original(self, plan)

    monkeypatch.setattr(Judge, "__call__", noted)
    run_recipe(recipe, until="plan", progress=False)
    assert len(before) == 2
    assert again
    assert not {*before} & {*again}
    whole = read_json(tmp_path / "runs/r/plan/candidates.json")
    again.clear()
    more = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, candidates=4))
    run_recipe(more, until="plan", progress=False)
    assert again == []  # they are among the five
    fewer = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert whole is not None
    assert fewer is not None
    assert [row["excess_error"] for row in fewer["rows"]] == [
        row["excess_error"] for row in whole["rows"][:4]
    ]
    run_recipe(recipe, until="plan", fresh=True, progress=False)
    assert again


def test_equal_plans_are_measured_once(tmp_path, monkeypatch):
    calls: list[PruningPlan] = []
    original = Judge.__call__
    monkeypatch.setattr(Judge, "__call__", lambda self, plan: calls.append(plan) or original(self, plan))
    recipe = recipe_of(tmp_path, kinds=["attention_heads"], round_to=2, target=Target(macs=0.9))
    run_recipe(recipe, until="plan", progress=False)
    trace = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert trace is not None
    rows = trace["rows"]
    repeated = [row for row in rows if row["why"] is None and row["same_as"] is not None]
    assert repeated
    for row in repeated:
        assert row["excess_error"] == rows[row["same_as"]]["excess_error"]
        assert row["architecture"] == rows[row["same_as"]]["architecture"]
    assert len(calls) == figures(trace)["measured"] == len(rows) - len(repeated)


def test_a_candidate_that_cannot_be_made_is_left_out_with_the_reason(tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path)
    original = Judge.__call__
    count = [0]

    def sometimes(self: Judge, plan: PruningPlan):
        count[0] += 1
        if count[0] == 2:
            raise PruningError("NaN or infinity in what the cut model answers at timestep bucket 0")
        return original(self, plan)

    monkeypatch.setattr(Judge, "__call__", sometimes)
    run_recipe(recipe, until="plan", progress=False)
    trace = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert trace is not None
    (failed,) = [row for row in trace["rows"] if row["why"] is not None]
    assert "timestep bucket 0" in failed["why"]
    assert not failed["chosen"]

    def never(self: Judge, plan: PruningPlan):
        raise PruningError("NaN or infinity everywhere")

    monkeypatch.setattr(Judge, "__call__", never)
    with pytest.raises(PruningError, match="stage 'plan': NaN or infinity everywhere"):
        run_recipe(recipe, until="plan", fresh=True, progress=False)


def test_a_lower_error_at_more_cost_does_not_win(tmp_path):
    run = Run(recipe_of(tmp_path))
    meta = {"hit": True, "goal": 100.0, "macs": {"plan": 1, "dense": 2}, "params": {"plan": 1, "dense": 2}}
    ids = torch.arange(3)

    def candidate(got: float, change: float, unit: int):
        errors = {
            "sample_ids": ids,
            "change": torch.tensor([change, change, 2 * change], dtype=torch.float64),
            "power": torch.ones(3, dtype=torch.float64),
            "rows": torch.ones(3, dtype=torch.float64),
        }
        return PruningPlan(kept={"g": (unit,)}, meta={**meta, "got": got}), errors

    found = [
        candidate(100, 0.3, 0),
        candidate(100.9, 0.1, 1),
        candidate(100.2, 0.2, 2),
        candidate(100, 0.3, 0),
    ]
    found.append(candidate(98, 0.1, 3))
    run.scores_in = lambda folder: None  # type: ignore[assignment, method-assign]
    specs = [Candidate(("obs",)) for _ in found]
    rows = [choosing._row(run, spec, one) for spec, one in zip(specs, found, strict=True)]
    assert choosing._compare(rows, found) == 2
    assert [row["meets"] for row in rows] == [True, False, True, True, False]
    assert [row["same_as"] for row in rows] == [None, None, None, 0, None]
    assert rows[2]["ratio"] == pytest.approx(2 / 3)
    assert rows[2]["ratio_ci95"] == pytest.approx([2 / 3, 2 / 3])
    assert rows[0]["ratio_ci95"] is None
    assert rows[0]["excess_error"] == pytest.approx(0.4)


def test_depth_and_width_are_mixed_on_a_unet(tmp_path):
    model = unet2d(in_channels=1, out_channels=1, sample_size=16)
    kinds = ["resnet_channels", "attention_heads", "blocks"]
    recipe = recipe_of(tmp_path, model, kinds=kinds, depth=Depth(budget=3, samples=2))
    run_recipe(recipe, until="prune", progress=False)
    trace = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert trace is not None
    rows = {row["name"]: row for row in trace["rows"]}
    assert rows["probe_obs, as in the recipe, no blocks"]["blocks"] == 0
    assert all(row["depth_share"] == 0 for row in rows.values() if row["why"] is None and not row["blocks"])
    assert (tmp_path / "runs/r/plan/depth.json").exists() == bool(trace["rows"][0]["chosen"])


def test_weights_in_a_smaller_form_are_part_of_what_is_measured(tmp_path):
    recipe = recipe_of(tmp_path, candidates=2, modulation_error=0.2)
    run_recipe(recipe, until="prune", progress=False)
    plan = PruningPlan.load(tmp_path / "runs/r/prune/plan.json")
    assert plan.ranks
    run = Run(recipe, progress=False)
    found = Judge(run, run.result("plan").folder)(run.plan)
    trace = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert trace is not None
    measured = float(found["change"].sum() / found["power"].sum())
    assert measured == pytest.approx(trace["rows"][trace["chosen"]]["excess_error"], rel=1e-6)


def test_where_no_image_is_left_it_is_said(tmp_path, caplog):
    recipe = recipe_of(tmp_path)
    run = Run(recipe, progress=False)
    everything = len(run.images("train"))
    run = Run(
        dataclasses.replace(recipe, calibrate=dataclasses.replace(recipe.calibrate, num_samples=everything)),
        progress=False,
    )
    judge = Judge(run, tmp_path)
    assert not judge.is_held_out
    with caplog.at_level(logging.WARNING):
        judge.look()
    assert "calibration takes all images of data.split" in caplog.text
    assert len({int(i) for batch, _ in judge._shown for i in batch.sample_ids}) == 4


def test_a_model_that_stays_in_its_files_has_no_candidates(tmp_path, monkeypatch):
    recipe = recipe_of(tmp_path)
    monkeypatch.setattr("pruning.stages.placement.Placement.streams", True)
    with pytest.raises(
        PruningError,
        match=r"prune\.candidates: 5 plans are each carried out on a copy .* \(calibrate\.memory_gb\)",
    ):
        preflight.check_candidates(Run(recipe))
    one = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, candidates=1))
    preflight.check_candidates(Run(one))


def test_a_dry_run_names_the_candidates_and_measures_none(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("candidates were measured")

    monkeypatch.setattr(choosing, "choose", refuse)
    recipe = recipe_of(tmp_path)
    assert dry_run(Run(recipe))["candidates"] == names_of(Run(recipe))
    assert choose is not choosing.choose
    one = dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, candidates=1))
    assert dry_run(Run(one))["candidates"] == []
    assert not list(Store(tmp_path / "runs/.store").path.glob("candidate/*"))


def test_a_target_that_is_measured_is_measured_for_every_candidate(tmp_path):
    first = Run(recipe_of(tmp_path, target=Target(memory_gb=1.0)), progress=False)
    dense = targets.costs_for(first)["memory"].total()
    recipe = recipe_of(tmp_path, target=Target(memory_gb=0.9 * dense / 1e9), candidates=3)
    run_recipe(recipe, until="plan", progress=False)
    trace = read_json(tmp_path / "runs/r/plan/candidates.json")
    assert trace is not None
    measured = [row for row in trace["rows"] if row["why"] is None]
    assert measured
    assert all(len(row["targets"]) == 1 for row in measured)
    chosen = PruningPlan.load(tmp_path / "runs/r/plan/plan.json")
    kept = read_json(tmp_path / "runs/r/plan/targets.json")
    assert kept is not None
    assert kept["targets"] == chosen.meta["targets"]
    assert kept["targets"]["memory_gb"]["measured"] > 0
