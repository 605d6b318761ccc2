"""Prune, train, prune: rounds that go on from each other, under the dense model as teacher and measure."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from pruning.cli import tables
from pruning.errors import PruningError
from pruning.models import load_denoiser
from pruning.recipe import load_recipe
from pruning.settings import Prune, Target
from pruning.stages import Run, run_recipe
from pruning.stages.dryrun import dry_run
from pruning.stages.placement import Placement
from pruning.stages.recovering import recovery
from tests.e2e.test_run import check_complete, features, save_bare, workplace, write_recipe
from tests.models import dit, unet2d

__all__ = ["features", "workplace"]
ROUNDS = ["name=last", "prune.target.macs=0.6", "prune.earlier=[0.9,0.75]", "prune.earlier_steps=2"]


@pytest.fixture
def recipe(workplace: Path, features) -> Path:
    save_bare(dit(sample_size=16), workplace)
    return write_recipe(workplace, features[1])


def test_rounds_end_at_the_target_of_the_dense_model(
    recipe: Path, workplace: Path, monkeypatch, caplog: pytest.LogCaptureFixture
):
    trained, teachers = recovery.recover_images, []

    def watch(student, teacher, *rest, **named):
        teachers.append(sum(p.numel() for p in teacher.parameters()))
        return trained(student, teacher, *rest, **named)

    monkeypatch.setattr(recovery, "recover_images", watch)
    with caplog.at_level(logging.INFO):
        found = run_recipe(recipe, [*ROUNDS, "prune.round_to=1"])
    check_complete(workplace / "runs/last", 0.6)
    assert found["macs_ratio"] == pytest.approx(0.6, rel=0.03)
    dense = sum(p.numel() for p in load_denoiser(workplace / "model").parameters())
    assert teachers == [dense] * 3
    for number, goal in ((1, 0.9), (2, 0.75)):
        place = workplace / f"runs/last-round-{number}"
        assert (place / "recover/model/config.json").is_file()
        assert not (place / "evaluate").exists()
        assert f"round {number} of 3: {goal} of the dense MACs" in caplog.text
    page = (workplace / "runs/last/report/report.html").read_text()
    assert "Cut before" in page
    assert "Target missed" not in page

    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = run_recipe(recipe, [*ROUNDS, "prune.round_to=1"])
    assert again == found
    assert len(teachers) == 3
    assert " done in" not in caplog.text

    run_recipe(recipe, [*ROUNDS, "prune.round_to=1", "prune.target.macs=0.5"], until="prune")
    assert len(teachers) == 3  # earlier rounds are the same


def test_a_killed_run_goes_on_with_the_round_that_it_was_in(recipe: Path, workplace: Path, monkeypatch):
    trained, count = recovery.recover_images, Mock(side_effect=[None, KeyboardInterrupt, None, None])

    def watch(*given, **named):
        count()
        return trained(*given, **named)

    monkeypatch.setattr(recovery, "recover_images", watch)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, ROUNDS)
    assert not (workplace / "runs/last").exists()
    found = run_recipe(recipe, ROUNDS, until="recover")
    assert count.call_count == 4
    assert found["macs_ratio"] == pytest.approx(0.6, rel=0.05), (
        "a share of the dense model, also before it is measured"
    )
    between = json.loads((workplace / "runs/last-round-2/summary.json").read_text())
    assert between["macs_ratio"] == pytest.approx(0.75, rel=0.05)
    assert (workplace / "runs/last/recover/model").is_dir()


def test_a_slim_model_may_be_the_start_of_any_run(recipe: Path, workplace: Path):
    run_recipe(recipe, ["name=first", "prune.target.macs=0.8"], until="recover")
    start = workplace / "runs/first/recover/model"
    run = Run(load_recipe(recipe, ["name=next", f"model.start={start}"]))
    assert sum(p.numel() for p in run.meta.parameters()) < sum(p.numel() for p in run.reference.parameters())
    assert run.share_of_dense("macs") == pytest.approx(0.8, rel=0.05)
    assert run.workspace.hashes["model"] != Run(load_recipe(recipe, ["name=next"])).workspace.hashes["model"]


@pytest.mark.parametrize(
    ("target", "earlier", "message"),
    [
        (Target(macs=0.5), [0.6, 0.7], "[0.6, 0.7] must fall from round to round and end above the target, 0.5"),
        (Target(macs=0.5), [0.5], "[0.5] must fall from round to round and end above the target, 0.5"),
        (Target(latency=0.5), [0.8], "[0.8] needs one target, of macs or params, and the target is 0.5"),
        (Target(macs=0.5, params=0.5), [0.8], "needs one target, of macs or params"),
        (Target(macs=0.5), [1.5], "1.5 is not in (0, 1)"),
    ],
)  # fmt: skip
def test_rounds_that_cannot_be_are_refused(target: Target, earlier: list[float], message: str):
    ((key, said),) = Prune(target=target, earlier=earlier).problems()
    assert key == "earlier"
    assert message in said


def test_what_would_stop_the_second_round_is_said_before_the_first(
    recipe: Path, workplace: Path, monkeypatch
):
    message = r"prune\.earlier: \[0\.9, 0\.75\]: recover\.method=blocks trains each block after its twin"
    with pytest.raises(PruningError, match=message):
        run_recipe(recipe, [*ROUNDS, "recover.method=blocks"])
    monkeypatch.setattr(Placement, "streams", True)
    with pytest.raises(
        PruningError, match=r"prune\.earlier: .*do not fit into the memory \(calibrate\.memory_gb\)"
    ):
        run_recipe(recipe, ROUNDS)
    assert not (workplace / "runs/last-round-1").exists()


def test_earlier_rounds_have_time_for_the_warm_up(recipe: Path):
    with pytest.raises(PruningError, match=r"prune\.earlier_steps: 2 is less than recover\.warmup_steps, 3"):
        load_recipe(recipe, [*ROUNDS, "recover.steps=5", "recover.warmup_steps=3"])
    load_recipe(recipe, [*ROUNDS, "recover.steps=500", "recover.warmup_steps=null"])


def test_a_dry_run_says_what_the_rounds_are(recipe: Path):
    found = dry_run(Run(load_recipe(recipe, ROUNDS)))
    goals = ["0.9 of the dense MACs", "0.75 of the dense MACs"]
    assert found["rounds"] == [{"target": goal, "steps": 2} for goal in goals]
    caption = tables.dry_run(found)[1].caption
    assert "come first (2, prune.earlier): 0.9 of the dense MACs, 2 steps; 0.75 of" in str(caption)
    assert dry_run(Run(load_recipe(recipe)))["rounds"] == []


def test_a_start_that_does_not_fit_is_refused_before_the_work(recipe: Path, workplace: Path):
    with pytest.raises(PruningError, match=r"^model\.start: .*nowhere"):
        run_recipe(recipe, [f"model.start={workplace}/nowhere"])
    unet2d().save_pretrained(workplace / "unet")
    message = re.escape("is a UNet2DModel, and the dense model")
    with pytest.raises(PruningError, match=f"model.start: .*{message}.*it must be of the same class"):
        run_recipe(recipe, [f"model.start={workplace}/unet"])
    with pytest.raises(PruningError, match=f"model.start: .*{message}"):
        dry_run(Run(load_recipe(recipe, [f"model.start={workplace}/unet"])))
    run_recipe(recipe, ["name=first"], until="prune")
    start = f"model.start={workplace}/runs/first/prune/model"
    with pytest.raises(PruningError, match=r"recover\.method: blocks trains each block after its twin"):
        run_recipe(recipe, ["name=next", start, "recover.method=blocks"])
    assert not (workplace / "runs/next").exists()
