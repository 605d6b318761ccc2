"""``sinkprune record``, and ``show`` of what it wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pruning
from pruning.cli import INTERRUPTED, USER_ERROR, main
from pruning.recording import RecordedCalls
from pruning.recording.describing import branches_in_words, describe
from pruning.stages.progress import Bars
from tests.pipelines import PIPELINES
from tests.unit.tiny_pipelines import dit_latent, stable_diffusion

ROOT = str(Path(__file__).parents[2])
PROMPTS = ["a red cat", "a blue dog", "a cat", "a dog", "a red dog"]
ASKED = ["--prompts", "texts.txt", "--points", "2", "num_inference_steps=3", "guidance_scale=4.5"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stable_diffusion(tmp_path).save_pretrained(tmp_path / "sd")
    Path("texts.txt").write_text("\n".join(PROMPTS))
    return tmp_path


def said(capsys: Any, *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: Any, *words: str) -> str:
    assert main(list(words)) == USER_ERROR
    return capsys.readouterr().err


def test_a_pipeline_is_recorded_into_a_folder_and_shown(workplace, capsys):
    found = said(capsys, "record", "sd", *ASKED, "--out", "calls")
    assert found["path"] == "calls"
    assert (found["pipeline"], found["samples"], found["steps"]) == ("StableDiffusionPipeline", 5, 3)
    assert found["call"] == {"num_inference_steps": 3, "guidance_scale": 4.5}
    assert found["rows"] == 5 * 2 * 2  # samples, points, branches
    assert found["target"] == "epsilon"
    unet = found["denoisers"]["unet"]
    assert unet["class"] == "UNet2DConditionModel"
    assert (unet["branches"], unet["signatures"], unet["shared"]) == ([[2]], 1, [])
    assert unet["batch"]["encoder_hidden_states"] == "dimension 0"
    assert found["bytes"] == sum(path.stat().st_size for path in Path("calls").iterdir())
    assert said(capsys, "show", "calls") == {**found, "command": "show"}
    assert main(["show", "calls"]) == 0
    text = capsys.readouterr().out
    assert "2 rows in one call" in text
    assert "yes: the target is epsilon" in text
    assert "3, of which each sample has 2" in text
    with_others = refused(capsys, "record", "sd", *ASKED, "--seed", "1", "--out", "calls")
    assert "calls holds another recording: seed was 0, is 1" in " ".join(with_others.split())


def test_classes_and_samples_are_asked_in_turn(workplace, capsys):
    dit_latent().save_pretrained("dit")
    where = ["--out", "dits", "num_inference_steps=2", "--dtype", "bfloat16", "--device", "cpu"]
    found = said(capsys, "record", "dit", "--labels", "3,5", "--samples", "3", *where)
    calls = RecordedCalls.open("dits")
    first = [calls.arguments(row)["class_labels"] for row in calls.rows if row.step == 0 and row.branch == 0]
    assert [int(label) for label in first] == [3, 5, 3]
    assert str(calls.arguments(calls.rows[0])["hidden_states"].dtype) == "torch.bfloat16"
    assert found["denoisers"]["transformer"]["rows"] == 3 * 2 * 2


KILLED = """
import os, signal, sys
from pruning.cli import main
from pruning.recording import record
from pruning.stages.progress import Bars

def kill(self, what, done, total, more=""):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

sys.modules[record.__module__].PART_SAMPLES = 2
Bars.__call__ = kill
main(sys.argv[1:])
"""


def kill(workplace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "record", "sd", *ASKED, "--out", "stopped"],
        env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def interrupt(workplace: Path) -> None:
    def stop(self: Bars, what: str, done: int, *rest: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bars, "__call__", stop)
        assert main(["record", "sd", *ASKED, "--out", "stopped"]) == INTERRUPTED


@pytest.mark.parametrize("stop", [kill, interrupt])
def test_a_recording_that_was_stopped_goes_on_to_the_same_files(workplace, capsys, monkeypatch, stop):
    monkeypatch.setattr(sys.modules[pruning.record.__module__], "PART_SAMPLES", 2)
    stop(workplace)
    assert said(capsys, "show", "stopped")["recorded"] == 2
    assert main(["show", "stopped"]) == 0
    assert "2 of 5; record again to go on" in capsys.readouterr().out
    for folder in ("stopped", "whole"):
        assert said(capsys, "record", "sd", *ASKED, "--out", folder)["recorded"] == 5
    stopped, whole = (
        {path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in ("stopped", "whole")
    )
    assert stopped == whole
    one, other = (RecordedCalls.open(folder) for folder in ("stopped", "whole"))
    assert [row.to_json() for row in one.rows] == [row.to_json() for row in other.rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "'sd' is a model, and no recipe; say where to with --out FOLDER"),
        (["--out", "o"], "StableDiffusionPipeline takes prompt; give --prompts FILE"),
        (["--out", "o", "--labels", "1"], "--labels: StableDiffusionPipeline takes no class_labels"),
        (["--out", "o", "--labels", "a"], "--labels: 'a' is no list of classes"),
        (["--out", "o", "--labels", "1", "--prompts", "texts.txt"], "--prompts and --labels"),
        (["--out", "o", "--prompts", "sd"], "--prompts: 'sd' is no text file"),
        (
            ["--out", "o", "--prompts", "text.txt"],
            "--prompts: there is no file 'text.txt' (did you mean 'texts.txt'?)",
        ),
        (["--out", "o", *ASKED, "height=tall", "width=9"], "StableDiffusionPipeline fails with {"),
        (["--out", "o", *ASKED, "--samples", "0"], "--samples: 0 must be at least 1"),
        (["--out", "o", *ASKED, "--points", "0"], "points is 0"),
        (["--out", "o", *ASKED, "hight=5"], "hight (5) is no argument of StableDiffusionPipeline"),
        (["--out", "o", *ASKED, "height=[1"], "height: '[1' cannot be read as YAML"),
        (["--out", "o", *ASKED, "--held-out"], "--held-out is for a recipe"),
        (["--out", "texts.txt", *ASKED], "--out: texts.txt is a file"),
        (["--out", " ", *ASKED], "--out is empty"),
        (["--out", "~nobody-here/o", *ASKED], "'~nobody-here/o': there is no such home folder"),
        (["--out", "o", *ASKED, "--device", "nope"], "--device: 'nope' cannot be used here"),
        (["--out", "o", *ASKED, "--device", ""], "--device: '' cannot be used here"),
        (["--out", "o", *ASKED, "height=13", "width=16"], "StableDiffusionPipeline fails with"),
    ],
)
def test_what_cannot_be_recorded_is_said_before_the_work(workplace, capsys, words, message):
    assert message in " ".join(refused(capsys, "record", "sd", *words).split())
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "with 'noised' calibration and recovery read images of the data"),
        (["--held-out"], "with 'noised' evaluation read images of the data"),
        (["--seed", "1"], "--seed is for a pipeline, and goes with --out FOLDER"),
    ],
)
def test_what_a_recipe_does_not_ask_for_is_not_recorded(workplace, capsys, words, message):
    assert message in " ".join(refused(capsys, "record", "quickstart", *words).split())
    assert not Path("runs").exists()


POINTS = """
model: {source: sd}
data: {source: texts.txt}
device: cpu
calibrate: {provider: sampling, num_samples: 2, num_steps: 2, timestep_buckets: 2}
prune: {target: {macs: 0.9}}
recover: {steps: 1, num_samples: 2}
evaluate: {metrics: [cost], num_samples: 2}
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recover.distill_weight=0.5"], "distill_weight is 0.5, but recorded points have no target"),
        (["recover.loss_weighting=min_snr"], "loss_weighting='min_snr' needs targets, which points lack"),
        (["run_dir=~nobody-here/x"], "there is no such home folder"),
    ],
)
def test_what_recovery_cannot_do_with_points_is_said_before_the_first_stage(
    workplace, capsys, words, message
):
    Path("my.yaml").write_text(POINTS)
    assert message in " ".join(refused(capsys, "run", "my.yaml", *words).split())
    assert not list(Path("runs").rglob("calibrate"))


@pytest.mark.parametrize("words", ["recover.distill_weight=0.5", "recover.loss_weighting=min_snr"])
def test_blocks_need_no_targets(workplace, words):
    """Each learns from its dense twin, so it does not matter what the loss of a whole model is made of."""
    Path("my.yaml").write_text(POINTS)
    assert main(["run", "my.yaml", "recover.method=blocks", words, "--until", "recover", "--quiet"]) == 0


def test_a_recipe_finds_what_was_recorded_for_it(workplace, capsys, monkeypatch):
    Path("my.yaml").write_text(
        "model: {source: sd}\ndata: {source: texts.txt}\ndevice: cpu\n"
        "pipeline: {guidance_scale: 2}\n"
        "calibrate: {provider: sampling, num_samples: 2, num_steps: 3, timestep_buckets: 3}\n"
        "prune: {target: {macs: 0.9}}\n"
        "recover: {num_samples: 3}\n"
        "evaluate: {denoising_samples: 1, num_steps: 3}\n"
    )
    training = said(capsys, "record", "my.yaml", "recover.num_samples=4")
    held_out = said(capsys, "record", "my.yaml", "recover.num_samples=4", "--held-out")
    assert (training["samples"], held_out["samples"]) == (4, 1)
    assert training["path"] != held_out["path"]
    listed = said(capsys, "ls", "results", "runs")["results"]
    assert sum("/recording/" in row["result"] for row in listed) == 2
    assert said(capsys, "show", str(Path(training["path"]).parent))["samples"] == 4
    monkeypatch.setattr("pruning.stages.showing.record", None)  # made before: found, also for fewer samples
    assert said(capsys, "record", "my.yaml")["path"] == training["path"]


def test_branches_that_are_two_calls_and_none_are_told_apart(tmp_path):
    tiny = PIPELINES["flux"]
    pruning.record(tiny.build(), tiny.inputs, tmp_path, call=tiny.call, points=2)
    found = describe(tmp_path)["denoisers"]["transformer"]
    assert found["branches"] == [[1]]
    assert {"img_ids", "txt_ids"} <= set(found["shared"])
    assert branches_in_words([[1]]).startswith("one row a step")
    assert branches_in_words([[1, 1]]) == "2 calls of 1"
    assert branches_in_words([]) == "none"
