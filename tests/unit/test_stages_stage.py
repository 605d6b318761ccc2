"""When a stage is reused, redone or resumed: with stages that cost nothing."""

from __future__ import annotations

import dataclasses
import errno
import logging
from functools import partial
from pathlib import Path

import pytest

from pruning.data import UnreadableRow
from pruning.errors import PruningError
from pruning.recipe import Recipe
from pruning.settings import Limit, Prune, Target
from pruning.stages.run import Run
from pruning.stages.stage import Stage


def stage(name: str, **settings):
    """Return a decorator that makes a stage."""
    return partial(Stage, name, **settings)


def make_recipe(tmp_path: Path, **changed) -> Recipe:
    """Return a recipe about a model that is never loaded."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    if not (model / "config.json").exists():
        (model / "config.json").write_text("{}")
    run_dir = str(tmp_path / "runs" / "r")
    recipe = Recipe(name="r", run_dir=run_dir, device="cpu", prune=Prune(target=Target(ratio=0.25)))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, source=str(model)))
    return dataclasses.replace(recipe, **changed)


def with_macs(recipe: Recipe, macs: float) -> Recipe:
    return dataclasses.replace(recipe, prune=dataclasses.replace(recipe.prune, target=Target(macs=macs)))


@pytest.fixture
def chain():
    """Three stages, each writing one file, and the list of those that worked."""
    worked: list[str] = []

    @stage("score", reads=("seed",))
    def first(run: Run, folder: Path):
        worked.append("score")
        (folder / "scores").write_text(str(run.recipe.seed))
        return {"n": 1}

    @stage("plan", after=("score",), reads=("prune.target",))
    def second(run: Run, folder: Path):
        worked.append("plan")
        scores = (run.result("score").folder / "scores").read_text()
        (folder / "plan").write_text(f"{scores} {run.recipe.prune.target.macs}")
        return {}

    @stage("prune", after=("plan",))
    def third(run: Run, folder: Path):
        worked.append("prune")
        (folder / "model").write_text("weights")
        return {}

    def go(recipe: Recipe) -> list[str]:
        worked.clear()
        run = Run(recipe)
        for one in (first, second, third):
            one(run)
        return list(worked)

    return go, (first, second, third)


def test_unchanged_stages_are_reused(tmp_path, chain, caplog):
    go, _ = chain
    recipe = make_recipe(tmp_path)
    assert go(recipe) == ["score", "plan", "prune"]
    with caplog.at_level(logging.INFO, logger="pruning"):
        assert go(recipe) == []
    assert caplog.text.count("unchanged, reused") == 3


def test_a_changed_setting_redoes_its_stage_and_those_after_and_setting_it_back_costs_nothing(
    tmp_path, chain, caplog
):
    go, _ = chain
    recipe, run = make_recipe(tmp_path), tmp_path / "runs" / "r"
    go(recipe)
    with caplog.at_level(logging.INFO, logger="pruning"):
        assert go(with_macs(recipe, 0.5)) == ["plan", "prune"]
        assert go(dataclasses.replace(recipe, seed=1)) == ["score", "plan", "prune"]
    assert "prune.target.macs None -> 0.5; prune.target.ratio 0.25 -> None" in caplog.text
    assert (run / "plan" / "plan").read_text() == "1 None"
    assert "seed: 1" in (run / "recipe.yaml").read_text()
    with caplog.at_level(logging.INFO, logger="pruning"):
        assert go(recipe) == []
    assert "score     made before, reused" in caplog.text
    assert (run / "plan" / "plan").read_text() == "0 None"
    assert go(with_macs(recipe, 0.5)) == []
    assert "seed: 0" in (run / "recipe.yaml").read_text()


def test_two_runs_share_what_they_have_in_common(tmp_path, chain):
    go, _ = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    other = dataclasses.replace(recipe, name="q", run_dir=str(tmp_path / "runs" / "q"))
    assert go(other) == []
    assert go(dataclasses.replace(other, seed=1)) == ["score", "plan", "prune"]
    assert (tmp_path / "runs" / "r" / "score" / "scores").read_text() == "0"
    assert (tmp_path / "runs" / "q" / "score" / "scores").read_text() == "1"
    apart = dataclasses.replace(
        recipe, store=str(tmp_path / "elsewhere"), run_dir=str(tmp_path / "runs" / "s")
    )
    assert go(apart) == ["score", "plan", "prune"]


def test_a_run_directory_that_was_moved_is_done_where_it_is(tmp_path, chain):
    go, _ = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    (tmp_path / "far").mkdir()
    (tmp_path / "runs" / "r").rename(tmp_path / "far" / "r")
    assert go(dataclasses.replace(recipe, run_dir=str(tmp_path / "far" / "r"))) == []


def test_a_setting_that_no_stage_reads_redoes_nothing(tmp_path, chain):
    go, _ = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    assert go(dataclasses.replace(recipe, title="New")) == []


@pytest.mark.parametrize("content", ["by hand", "0 Non", None])
def test_a_damaged_artefact_is_made_again_and_said_aloud_and_kept(tmp_path, chain, caplog, content):
    go, _ = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    path = tmp_path / "runs" / "r" / "plan" / "plan"
    path.unlink() if content is None else path.write_text(content)
    assert go(recipe) == (
        [] if content is None else ["plan"]
    )  # with the same outcome, so what follows may stay
    assert "plan/plan was changed since it was written" in caplog.text or content is None
    assert "plan/ had been changed and is mended; what was there is in " in caplog.text
    assert path.read_text() == "0 None"
    kept = list((tmp_path / "runs" / ".store" / ".aside").glob("*/*"))
    assert content is None or all((folder / "plan").read_text() == content for folder in kept)
    assert kept
    assert go(recipe) == []


def test_a_redone_stage_with_another_outcome_redoes_what_follows(tmp_path, chain):
    go, (first, _, _) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    (tmp_path / "runs" / "r" / "score" / "scores").write_text("by hand")
    object.__setattr__(first, "work", lambda run, folder: (folder / "scores").write_text("other") and {})
    assert go(recipe) == ["plan", "prune"]
    assert (tmp_path / "runs" / "r" / "plan" / "plan").read_text() == "other None"


def test_a_stage_refuses_a_damaged_input_naming_the_file(tmp_path, chain):
    go, (_, _, third) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    (tmp_path / "runs" / "r" / "plan" / "plan").write_text("by hand")
    with pytest.raises(PruningError, match=r"plan/plan was changed .*; run `sinkprune plan`"):
        third(Run(recipe))


def test_a_view_without_its_record_is_mended(tmp_path, chain):
    go, _ = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    (tmp_path / "runs" / "r" / "plan" / "manifest.json").unlink()
    assert go(recipe) == []
    assert (tmp_path / "runs" / "r" / "plan" / "manifest.json").is_file()


def test_a_stage_that_is_to_be_done_anew_is_and_what_was_there_stays_until_then(tmp_path, chain):
    go, (first, second, _) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    run = Run(recipe)
    run.anew = {"plan"}
    broken = dataclasses.replace(second, work=lambda run, folder: 1 / 0)
    first(run)
    with pytest.raises(ZeroDivisionError):
        broken(run)
    assert Run(recipe).folder.done() == ["score", "plan", "prune"]
    counted: list[int] = []
    dataclasses.replace(second, work=lambda run, folder: counted.append(1) or {})(run)
    assert counted == [1]
    assert not run.anew


def test_an_error_says_in_which_stage_it_came_up(tmp_path):
    @stage("score")
    def broken(run: Run, folder: Path):
        raise UnreadableRow("row 3")

    with pytest.raises(UnreadableRow, match=r"^stage 'score': row 3$"):
        broken(Run(make_recipe(tmp_path)))


def test_a_manifest_says_with_what_and_how_long(tmp_path, chain):
    go, (first, _, _) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    manifest = Run(recipe).folder.manifest("score")
    assert manifest["config"] == {"seed": 0}
    assert manifest["kind"] == "score"
    assert manifest["result"] == {"n": 1}
    assert set(manifest["inputs"]) == {"model", "data"}
    assert manifest["seconds"] >= 0
    assert "torch" in manifest["versions"]
    assert first.find(Run(recipe)) is not None
    assert first.find(Run(dataclasses.replace(recipe, seed=1))) is None


def test_what_holds_more_than_is_asked_is_reused_and_still_says_what_it_holds(tmp_path):
    worked: list[list[str]] = []
    asked = ["a", "b"]

    @stage("score", reads=("seed",), asked=lambda run: {"names": asked})
    def gather(run: Run, folder: Path):
        worked.append(asked)
        return {}

    recipe = make_recipe(tmp_path)
    gather(Run(recipe))
    asked = ["b"]
    gather(Run(recipe))
    assert worked == [["a", "b"]]
    assert Run(recipe).folder.manifest("score")["asked"]["names"] == ["a", "b"]
    asked = ["b", "c"]
    gather(Run(recipe))
    asked = ["b"]
    gather(Run(dataclasses.replace(recipe, seed=1)))  # another setting changed: what it holds is of no use
    assert worked == [["a", "b"], ["b", "c"], ["b"]]


def test_of_lists_only_what_came_and_went_is_said(tmp_path, caplog):
    asked = {"needs": ["energy", "sums"]}

    @stage("calibrate", reads=("prune.kinds", "prune.limits"), asked=lambda run: asked)
    def gather(run: Run, folder: Path):
        return {}

    recipe = make_recipe(tmp_path)
    gather(Run(recipe))
    asked["needs"] = ["energy", "sums", "taylor"]
    limits = [Limit(match="a", min_units=2)]
    prune = dataclasses.replace(recipe.prune, kinds=["blocks", "attention_heads"], limits=limits)
    with caplog.at_level(logging.INFO, logger="pruning"):
        gather(Run(dataclasses.replace(recipe, prune=prune)))
    limit = "prune.limits + {'match': 'a', 'max_ratio': None, 'min_units': 2}"
    kinds = "prune.kinds + blocks - ffn_channels, resnet_channels"
    assert f"calibrate {kinds}; {limit}; needs + taylor" in caplog.messages


def test_a_stage_whose_input_is_missing_says_which_to_run(tmp_path, chain):
    _, (_, second, _) = chain
    with pytest.raises(PruningError, match=r"stage 'score' has not been run; run `sinkprune score` first"):
        second(Run(make_recipe(tmp_path)))


def test_a_failed_stage_leaves_earlier_results_in_their_place_and_nothing_of_its_own(tmp_path, chain):
    go, (_, second, _) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)

    def fail(run: Run, folder: Path):
        (folder / "half").write_text("1")
        raise PruningError("no")

    broken = dataclasses.replace(second, work=fail, reads=("prune",))
    with pytest.raises(PruningError, match="no"):
        broken(Run(recipe))
    assert Run(recipe).folder.done() == ["score", "plan", "prune"]
    assert go(recipe) == []
    files = sorted(p.name for p in (tmp_path / "runs" / "r" / "plan").iterdir())
    assert files == ["DONE", "manifest.json", "plan"]


@pytest.mark.parametrize("call", ["os.link", "pathlib.Path.rename", "pathlib.Path.write_text"])
def test_a_disk_that_is_full_when_the_view_changes_loses_nothing(tmp_path, chain, monkeypatch, call):
    go, (first, _, _) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    before = Run(recipe).folder.done()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        if call == "os.link":
            patch.setattr("shutil.copy2", full)
        with pytest.raises(PruningError, match=r"cannot write stage 'score' .*the disk is full"):
            first(Run(dataclasses.replace(recipe, seed=3)))
    assert Run(recipe).folder.done() == before
    assert go(recipe) == []


def test_a_recipe_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path, chain, monkeypatch):
    go, (_, second, _) = chain
    recipe = make_recipe(tmp_path)
    go(recipe)
    whole = (tmp_path / "runs" / "r" / "recipe.yaml").read_text()

    def half(self, text, **more):
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError(errno.EFBIG, "File too large")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(PruningError, match=r"cannot write stage 'plan' .*ulimit"):
            second(Run(with_macs(recipe, 0.5)))
    assert (tmp_path / "runs" / "r" / "recipe.yaml").read_text() == whole
    assert go(recipe) == []


def resumable(work) -> Stage:
    return stage("recover", reads=("recover.steps",), resumable=True)(work)


def test_an_interrupted_resumable_stage_finds_what_it_left(tmp_path):
    seen: list[bool] = []

    def work(run: Run, folder: Path):
        seen.append((folder / "checkpoint").exists())
        (folder / "checkpoint").write_text("1")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return {}

    recipe = make_recipe(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        resumable(work)(Run(recipe))
    resumable(work)(Run(recipe))
    assert seen == [False, True]
    assert Run(recipe).folder.manifest("recover")["artefacts"].keys() == {"checkpoint"}


def test_an_interrupted_stage_with_other_settings_starts_anew_and_the_attempt_is_kept(tmp_path):
    seen: list[bool] = []

    def work(run: Run, folder: Path):
        seen.append((folder / "checkpoint").exists())
        (folder / "checkpoint").write_text("1")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return {}

    recipe = make_recipe(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        resumable(work)(Run(recipe))
    other = dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, steps=7))
    resumable(work)(Run(other))
    resumable(work)(Run(recipe))
    assert seen == [False, False, True]


def test_a_neutral_setting_lets_an_interrupted_stage_go_on(tmp_path):
    recipe = make_recipe(tmp_path)
    stage_ = stage("recover", reads=("recover",))(lambda run, folder: {})
    often = dataclasses.replace(recipe, recover=dataclasses.replace(recipe.recover, checkpoint_every=1))
    assert stage_.key(Run(recipe)).id == stage_.key(Run(often)).id


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "stage 'score' .*the disk is full.*are kept"),
        (OSError(errno.EROFS, "Read-only"), "stage 'score' .*read-only"),
    ],
)
def test_a_full_or_read_only_disk_is_one_clear_error(tmp_path, error, message):
    @stage("score")
    def full(run: Run, folder: Path):
        raise error

    with pytest.raises(PruningError, match=message):
        full(Run(make_recipe(tmp_path)))


def test_other_os_errors_pass_unchanged(tmp_path):
    @stage("score")
    def lost(run: Run, folder: Path):
        raise FileNotFoundError("image.png")

    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        lost(Run(make_recipe(tmp_path)))
