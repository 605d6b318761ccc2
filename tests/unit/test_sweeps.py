"""Sweeps: which runs there are, how they are done, what a search goes by, and what is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from pruning.cli import main
from pruning.errors import PruningError
from pruning.sweeps import Axis, Sweep, front_of, grid, on_ray, read_axes, search
from pruning.sweeps.points import name_of
from pruning.sweeps.work import Done, Submit, Task, work


def test_axes_are_values_or_ranges():
    words = ["prune.target.macs=0.4, 0.5", "prune.kinds=[a,b],[c]", "recover.steps=10..200", "seed=-1..2.5"]
    assert read_axes(words) == [
        Axis("prune.target.macs", ("0.4", "0.5")),
        Axis("prune.kinds", ("[a,b]", "[c]")),
        Axis("recover.steps", range=(10, 200)),
        Axis("seed", range=(-1, 2.5)),
    ]
    assert read_axes(["data.source=../a,../b"]) == [Axis("data.source", ("../a", "../b"))]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed"], r"grid 'seed': write KEY=VALUE"),
        (["=1"], r"write KEY=VALUE"),
        (["seed="], r"write KEY=VALUE"),
        (["seed=1,,2"], "nothing between two commas"),
        (["seed=1,1"], "1 is there twice"),
        (["seed=1", "seed=2"], "seed is there twice"),
        (["seed=3..2"], "goes up"),
        (["seed=1e..2"], "a range is of two numbers"),
    ],
)
def test_axes_that_are_none(words: list[str], said: str):
    with pytest.raises(PruningError, match=said):
        read_axes(words)


def test_a_grid_is_every_combination_and_no_range():
    axes = [Axis("a", ("1", "2")), Axis("b", ("x", "y"))]
    assert grid(axes) == [{"a": a, "b": b} for a in "12" for b in "xy"]
    with pytest.raises(PruningError, match=r"grid c: a range is for a search.*--search N"):
        grid([*axes, Axis("c", range=(0.0, 1.0))])


def test_names_are_as_short_as_tells_keys_apart():
    assert name_of({"prune.target.macs": "0.4", "score.criterion": "obs"}) == "macs-0.4_criterion-obs"
    assert name_of({"calibrate.steps": "1", "recover.steps": "2"}) == "calibrate_steps-1_recover_steps-2"
    assert name_of({"prune.kinds": "[a, b]"}) == "kinds-a-b"


def test_a_run_that_cannot_be_is_refused_before_any_is_done(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = Sweep("quickstart")
    with pytest.raises(PruningError, match=r"the run macs-7: .*7\.0 is not in \(0, 1\]"):
        sweep.point({"prune.target.macs": "7"})
    sweep.point({"prune.kinds": "[attention_heads]"})
    with pytest.raises(PruningError, match="two runs would have the name kinds-attention_heads"):
        sweep.point({"prune.kinds": "[ attention_heads]"})
    assert not list(tmp_path.iterdir())


def test_runs_share_the_store_of_the_recipe(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = Sweep("quickstart", ["seed=3"])
    one = sweep.point({"prune.target.macs": "0.4"})
    assert one.run_dir == Path("runs/quickstart-sweep/macs-0.4")
    assert one.words[:3] == ("seed=3", "store=runs/.store", "prune.target.macs=0.4")


def test_what_needs_a_quiet_machine_is_left_out_side_by_side(tmp_path: Path):
    sweep = Sweep("quickstart", folder=tmp_path)
    one = sweep.point({"seed": "1"})
    task = sweep.task(one, jobs=2)
    assert task.until == "evaluate"
    assert task.words[-1] == "evaluate.metrics=[fid,kid,pairs,consistency,denoising,cost]"
    assert sweep.task(one).until is None
    timed = Sweep("quickstart", ["evaluate.metrics=[latency]"], tmp_path)
    assert timed.task(timed.point({"seed": "1"}), jobs=2).until == "recover"


def in_place_of_runs(figures: Callable[[dict[str, str]], dict[str, Any]], failing: str = "") -> Submit:
    """Return what does no run, but writes figures that follow from its settings."""

    def submit(task: Task) -> Future[Done]:
        settings = dict(word.split("=", 1) for word in task.words)
        run, done = Path(settings["run_dir"]), Future[Done]()
        if settings["name"] == failing:
            done.set_result(Done(2, "error: no luck", 1.0))
            return done
        run.mkdir(parents=True, exist_ok=True)
        (run / "summary.json").write_text(json.dumps(figures(settings)))
        done.set_result(Done(0, "", 1.0))
        return done

    return submit


def figures_of(settings: dict[str, str]) -> dict[str, Any]:
    """Low MACs cost quality; one of two criteria is better throughout."""
    macs, better = float(settings["prune.target.macs"]), settings["score.criterion"] == "probe_obs"
    return {"macs_ratio": macs, "excess_error": (1 - macs) * (1 if better else 2), "name": settings["name"]}


AXES = [Axis("prune.target.macs", range=(0.3, 0.9)), Axis("score.criterion", ("probe_obs", "magnitude"))]


def test_a_search_finds_the_front_and_goes_on(tmp_path: Path):
    pytest.importorskip("optuna")
    sweep = Sweep("quickstart", folder=tmp_path)
    submit = in_place_of_runs(figures_of)
    found = search(sweep, AXES, 12, submit, jobs=1)
    assert len(sweep.points) == len(sweep.done) == 12
    front = [one for one in found if one.settings["score.criterion"] == "probe_obs"]
    assert len(front) >= len(found) - 1, "a run with the better criterion beats those with the other"
    again = Sweep("quickstart", folder=tmp_path)
    more = search(again, AXES, 15, submit, jobs=2)
    assert len(again.done) == 3, "the first twelve count"
    assert len(again.points) == 15
    assert more
    with pytest.raises(
        PruningError, match="holds a search of other settings or figures; choose another --out"
    ):
        search(Sweep("quickstart", folder=tmp_path), AXES[:1], 3, submit)


def test_a_search_that_goes_on_draws_other_runs(tmp_path: Path):
    pytest.importorskip("optuna")
    submit = in_place_of_runs(figures_of)
    for trials in (2, 4):
        sweep = Sweep("quickstart", folder=tmp_path)
        search(sweep, AXES, trials, submit)
    assert len(sweep.points) == 4


def test_a_search_goes_past_runs_that_fail_but_not_past_missing_figures(tmp_path: Path):
    pytest.importorskip("optuna")
    sweep, axes = Sweep("quickstart", folder=tmp_path), [Axis("score.criterion", ("probe_obs", "magnitude"))]
    figures = {"macs_ratio": 0.5, "excess_error": 0.1}
    submit = in_place_of_runs(lambda settings: figures, failing="criterion-magnitude")
    found = search(sweep, axes, 6, submit)
    assert {one.name for one in found} == {"criterion-probe_obs"}
    other, submit = Sweep("quickstart", folder=tmp_path / "other"), in_place_of_runs(lambda settings: figures)
    said = r"summary\.json has no number 'frechet_ratio'.*it has macs_ratio, excess_error"
    with pytest.raises(PruningError, match=said):
        search(other, axes, 3, submit, front=["macs_ratio", "frechet_ratio"])


def test_what_a_search_goes_by():
    assert front_of(["cost", "denoising"], [], 1) == ("macs_ratio", "excess_error")
    assert front_of(["fid"], [], 1) == ("macs_ratio", "frechet_ratio")
    assert front_of([], ["latency_speedup", "mse_pruned"], 1) == ("latency_speedup", "mse_pruned")
    with pytest.raises(PruningError, match=r"none of denoising, fid is in evaluate\.metrics"):
        front_of(["cost"], [], 1)
    with pytest.raises(PruningError, match="latency_speedup cannot be measured while 2 runs share a machine"):
        front_of([], ["latency_speedup", "mse_pruned"], 2)


@pytest.mark.parametrize(("again", "left"), [(False, ["seed-3"]), (True, ["seed-1", "seed-3"])])
def test_what_is_done_alone(tmp_path: Path, monkeypatch, again: bool, left: list[str]):
    """Also the runs of an earlier search, of which this one only knows that they are there; not those that failed."""
    sweep, done = Sweep("quickstart", folder=tmp_path), []
    for seed in "123":
        sweep.point({"seed": seed})
    sweep.done |= {"seed-1": Done(0, "", 1.0), "seed-2": Done(2, "error: no luck", 1.0)}
    submit = in_place_of_runs(lambda settings: done.append(settings["name"]) or {})
    monkeypatch.setattr("pruning.sweeps.sweep.here", lambda jobs: nullcontext(submit))
    sweep.alone(again=again)
    assert done == left
    assert [one.name for one in sweep.succeeded()] == ["seed-1", "seed-3"]


def test_a_run_that_is_stopped_is_ended(tmp_path: Path):
    stopped = Event()
    Timer(1.0, stopped.set).start()
    done = work(Task("quickstart", (f"run_dir={tmp_path / 'run'}",), tmp_path / "log"), stopped)
    assert done.status != 0
    assert done.seconds < 60


def test_what_a_run_said_last_is_its_error(tmp_path: Path):
    done = work(Task("quickstart", ("seed=x", f"run_dir={tmp_path / 'run'}"), tmp_path / "log"))
    assert done.status == 2
    assert done.said.startswith("error: command line: seed: ")
    assert done.said in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_runs_on_a_ray_cluster(tmp_path: Path):
    pytest.importorskip("ray")
    with on_ray("local", 2) as submit:
        tasks = [Task("quickstart", (f"seed={word}",), tmp_path / f"{word}.log") for word in ("x", "y")]
        found = [one.result(timeout=300) for one in [submit(task) for task in tasks]]
    assert [(done.status, "seed" in done.said) for done in found] == [(2, True), (2, True)]


def test_no_ray_cluster():
    pytest.importorskip("ray")
    with socket.socket() as free:  # nobody listens there
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with (
            pytest.raises(PruningError, match=f"--ray {address}: there is no such cluster"),
            on_ray(address, 1),
        ):
            pass


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--grid", "seed=1,2", "--jobs", "0"], "--jobs 0: it must be at least 1"),
        (["--grid", "seed=1..2"], "a range is for a search"),
        (["--grid", "seed=1,2", "--front", "a,b"], "--front is what a search goes by"),
        (
            ["--grid", "seed=1,2", "--search", "2", "--dry-run"],
            "--dry-run: a search chooses its runs as it goes",
        ),
        (["--grid", "nothing=1,2"], "nothing is unknown"),
    ],
)
def test_the_command_refuses(words: list[str], said: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "quickstart", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_the_command_lists_its_runs(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            ["sweep", "quickstart", "--grid", "seed=1,2", "score.criterion=obs,random", "--dry-run", "--json"]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == [
        f"seed-{seed}_criterion-{name}" for seed in (1, 2) for name in ("obs", "random")
    ]
