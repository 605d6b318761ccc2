"""Whole runs, from a recipe to the report, on tiny random models of the three families."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from PIL import Image

import pruning
from eval.classifier import SmallClassifier, save_classifier
from pruning.allocation.budget import TOLERANCE
from pruning.cli import main
from pruning.errors import PruningError
from pruning.importance.diagnostics import HIGH_MASS, LOW_FLUCTUATION
from pruning.recipe import load_recipe
from pruning.recording import conditions
from pruning.stages import Run, judging, run_recipe
from pruning.store import Store, file_hash
from tests.models import dit, unet2d
from tests.unit.test_allocation_targets import table
from tests.unit.tiny_pipelines import dit_latent, stable_diffusion, tiny_clip

NOISE_LEVELS = conditions.LEVELS
STAGES = ("calibrate", "score", "plan", "prune", "recover", "evaluate", "export", "report")

RECIPE = """
name: tiny
device: cpu
model: {{source: {model}}}
data: {{source: {data}}}
calibrate: {{num_samples: 6, batch_size: 3, timestep_buckets: 2}}
prune: {{target: {{macs: {macs}}}, kinds: [attention_heads, ffn_channels, resnet_channels]}}
recover: {{steps: 3, batch_size: 4, warmup_steps: 1, checkpoint_every: 2, num_samples: 6}}
evaluate:
  num_samples: 6
  num_steps: 2
  sampler: DDIMScheduler
  batch_size: 3
  denoising_samples: 4
  features: {features}
  latency: {{batch_size: 2, runs: 2, sampling_runs: 1}}
export: {{dtype: float32}}
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> dict[int, Path]:
    """Random classifiers for grey and for RGB images, by channels."""
    folders = {}
    for channels in (1, 3):
        torch.manual_seed(0)
        folders[channels] = tmp_path_factory.mktemp("features")
        classifier = SmallClassifier(in_channels=channels, widths=(4, 4, 4, 4), name="random").eval()
        save_classifier(classifier, folders[channels])
    return folders


@pytest.fixture(autouse=True)
def few_noise_levels() -> Iterator[None]:
    """Pixel models are shown images at 10 noise levels: recording the calls for 100 is a third of such a run."""
    with pytest.MonkeyPatch.context() as patch:  # one of its own, for tests undo theirs
        patch.setattr(conditions, "LEVELS", 10)
        yield


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(place: Path, features: Path, *, data: str = "digits", macs: float = 0.75) -> Path:
    path = place / "tiny.yaml"
    path.write_text(RECIPE.format(model=place / "model", data=data, features=features, macs=macs))
    return path


def save_bare(model, place: Path) -> None:
    part = "transformer" if isinstance(model, DiTTransformer2DModel) else "unet"
    model.save_pretrained(place / "model" / part)
    DDIMScheduler().save_pretrained(place / "model" / "scheduler")


def check_complete(run: Path, macs: float) -> dict:
    """Check what every finished run must hold; return its summary."""
    for stage in STAGES:
        assert (run / stage / "DONE").is_file(), stage
    assert not list((run.parent / ".store" / ".partial").iterdir())
    assert not (run / ".lock").exists()
    summary = json.loads((run / "summary.json").read_text())
    asked = {
        "frechet_dense",
        "frechet_pruned",
        "frechet_recovered",
        "macs_ratio",
        "latency_speedup",
        "params_ratio",
        "file_bytes_dense",
        "file_bytes_pruned",
        "seconds",
    }
    assert all(isinstance(summary[key], (int, float)) for key in asked)
    assert summary["macs_ratio"] == pytest.approx(macs, abs=0.08)
    assert summary["params_ratio"] < 1
    files = summary["file_bytes_pruned"] / summary["file_bytes_dense"]
    assert files == pytest.approx(summary["params_ratio"], abs=0.1)
    data = json.loads((run / "report" / "data.json").read_text())
    assert data["subjects"] == ["dense", "pruned", "recovered"]
    assert data["cuts"]
    assert len(data["recovery"]["loss"]) == 3
    if "rows" in data["criteria"]:
        own, *others = data["criteria"]["rows"]
        assert own["shares"] == pytest.approx([1 - cut["kept"] / cut["total"] for cut in data["cuts"]])
        assert {"random", "magnitude"} <= {row["name"] for row in others}
    if data["diagnostics"]["heads"]:
        assert all(head["tokens"] == math.prod(head["grid"]) for head in data["folding"]["heads"])
        assert (run / "report" / data["folding"]["file"]).is_file()
    page = (run / "report" / "report.html").read_text()
    assert "<svg" in page
    check_provenance(run, data, summary)
    return summary


def check_provenance(run: Path, data: dict, summary: dict) -> None:
    """Check that what the report shows names the files that it is from, and these the stages that wrote them."""
    of = data["sources"]
    assert of["metrics"] == ["evaluate/metrics.json"]
    assert of["cuts"] == ["prune/plan.json"]
    assert of["recovery"] == ["recover/losses.json"]
    assert of["title"] == []
    assert {"calibrate/stats", "prune/plan.json"} <= set(of["diagnostics"])
    assert {"plan/plan.json", "score/scores.safetensors"} <= set(of["layers"])
    for file in {file for files in of.values() for file in files}:
        assert (run / file).exists(), file
        assert file.partition("/")[0] in data["provenance"]
    assert data["provenance"]["evaluate"]["files"].keys() == {
        "metrics.json",
        "sample.json",
        "samples.safetensors",
    }
    for stage, said in data["provenance"].items():
        manifest = json.loads((run / stage / "manifest.json").read_text())
        assert said["result"] == f"{manifest['kind']}/{manifest['id']}"
        assert said["settings"] == manifest["config"]
        named = {file for files in of.values() for file in files}
        assert said["files"] == {
            file: entry["sha256"]
            for file, entry in manifest["artefacts"].items()
            if f"{stage}/{file}" in named
        }
        assert summary["provenance"][stage].items() <= said.items()
    freed = sum(row["freed"]["params"] for row in data["layers"]["rows"])
    assert freed == pytest.approx(
        data["layers"]["dense"]["params"] - data["layers"]["plan"]["params"], rel=0.05
    )
    assert "Which layers pay most" in (run / "report" / "report.html").read_text()


def test_a_dit_from_recipe_to_report(workplace, features, monkeypatch, caplog):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    recipe = write_recipe(workplace, features[1])
    summary = run_recipe(recipe)
    assert summary == check_complete(workplace / "runs" / "tiny", 0.75)
    slim = DiTTransformer2DModel.from_pretrained("runs/tiny/export/diffusers", subfolder="transformer")
    count = sum(p.numel() for p in slim.parameters())
    plan = json.loads(Path("runs/tiny/plan/plan.json").read_text())
    assert count < plan["meta"]["params"]["dense"]
    assert count == pytest.approx(plan["meta"]["params"]["plan"], rel=0.02)  # folding may add biases
    data = json.loads(Path("runs/tiny/report/data.json").read_text())
    assert [(site["heads"], site["keys"], site["grid"]) for site in data["sink_sites"]] == [
        (4, 16, [4, 4])
    ] * 3
    assert data["sink_detection"] == {"mode": "ratio", "rho": None}
    assert data["diagnostics"]["bounds"] == {"high_mass": HIGH_MASS, "low_fluctuation": LOW_FLUCTUATION}
    assert data["asked"]["tolerance"] == TOLERANCE

    # A second time nothing is done; another target redoes the plan and what follows, with the same scores; the first
    # target again brings everything back.
    before = {stage: (workplace / "runs/tiny" / stage / "DONE").stat().st_mtime_ns for stage in STAGES}
    with monkeypatch.context() as full:  # what is done needs no room
        full.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        run_recipe(recipe)
        with pytest.raises(PruningError, match=r"are needed and 1\.00 kB are free"):
            run_recipe(recipe, ["prune.target.macs=0.85"])
    with caplog.at_level("INFO"):
        run_recipe(recipe, ["prune.target.macs=0.85"], until="prune")
    assert (
        "runs/tiny no longer shows recover, evaluate, export, report: made with other settings" in caplog.text
    )
    after = {s: (workplace / "runs/tiny" / s / "DONE") for s in STAGES}
    reused = [s for s in STAGES if after[s].exists() and after[s].stat().st_mtime_ns == before[s]]
    assert reused == ["calibrate", "score"]
    assert not after["recover"].exists()
    with monkeypatch.context() as nothing:
        nothing.setattr("pruning.store.store.Store.make", lambda *a, **k: 1 / 0)
        assert run_recipe(recipe) == summary
    assert {stage: done.stat().st_mtime_ns for stage, done in after.items()} == before


def test_a_target_of_time_from_recipe_to_report(workplace, features, monkeypatch):
    def by_hand(model, groups, inputs, *, threads, progress):
        meta = {"batch_size": 4, "threads": threads, "layers": 6, "kinds_of_layers": 2, "calls": 1}
        return dataclasses.replace(table(model, groups), meta={**meta, "layers_share": 0.8})

    monkeypatch.setattr("pruning.stages.targets.measure_table", by_hand)
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    recipe = write_recipe(workplace, features[1])
    rows = ["evaluate.latency.batch_sizes=[1]", "evaluate.latency.modes=[eager, cuda_graphs]"]
    asked = ["prune.target={latency: 0.8, params: 0.95}", *rows]
    summary = run_recipe(recipe, asked)
    assert summary["asked"] == "0.95 of the dense parameters and 0.8 of the dense latency"
    data = json.loads(Path("runs/tiny/report/data.json").read_text())
    found = data["targets"]["targets"]
    assert found.keys() == {"latency", "params"}
    assert found["latency"]["rounds"] >= 11
    assert found["latency"]["said"].keys() == {"predicted", "measured", "interval", "gap"}
    told = {
        (row["mode"], row["batch_size"]): row["skipped"] for row in data["metrics"]["pruned"]["latency_rows"]
    }
    assert told[("eager", 1)] is None
    assert told[("cuda_graphs", 2)] == "CUDA graphs need a CUDA GPU, and the models are on cpu"
    page = Path("runs/tiny/report/report.html").read_text()
    assert "<h2>Targets</h2>" in page
    assert "One call, eager, batch 1" in page


def test_a_unet_with_classes_and_without_recovery(workplace, features):
    save_bare(unet2d(sample_size=16, num_class_embeds=10), workplace)
    recipe = write_recipe(workplace, features[1])
    summary = run_recipe(
        recipe, ["recover.enabled=false", "score.criterion=taylor", "evaluate.metrics=[cost,fid]"]
    )
    assert summary["frechet_recovered"] is None
    assert summary["frechet_pruned"] > 0
    assert summary["latency_speedup"] is None
    model = UNet2DModel.from_pretrained("runs/tiny/export/diffusers", subfolder="unet")
    assert sum(p.numel() for p in model.parameters()) < sum(
        p.numel() for p in unet2d(sample_size=16, num_class_embeds=10).parameters()
    )


@pytest.fixture
def captioned(workplace) -> str:
    """A folder of parquet files of RGB images with captions and labels, train, validation and test."""
    rng = np.random.default_rng(0)
    folder = workplace / "images"
    folder.mkdir()
    columns = {
        "image": datasets.Image(),
        "caption": datasets.Value("string"),
        "label": datasets.Value("int64"),
    }
    for split, count in (("train", 8), ("validation", 6), ("test", 6)):
        images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
        captions = ["a red cat", "a blue dog"] * (count // 2)
        rows = {"image": images, "caption": captions, "label": list(range(count))}
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
        table.to_parquet(str(folder / f"{split}.parquet"))
    return str(folder)


def ddpm(place: Path) -> DDPMPipeline:
    unet = unet2d(in_channels=3, out_channels=3, sample_size=16)
    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler())


SMALL = (
    "device=cpu",
    "model.source=model",
    "data.source=images",
    "calibrate.num_samples=4",
    "calibrate.batch_size=4",
    "calibrate.timestep_buckets=2",
    "calibrate.queries=8",
    "recover.steps=2",
    "recover.batch_size=8",
    "recover.warmup_steps=0",
    "recover.mixed_precision=no",
    "evaluate.num_samples=4",
    "evaluate.num_steps=2",
    "evaluate.batch_size=4",
    "evaluate.num_real=6",
    "evaluate.denoising_samples=4",
    "evaluate.latency={batch_size: 2, runs: 2, sampling_runs: 1}",
)
"""What makes a recipe for a real model small; everything else stays as it is written there."""


@pytest.mark.parametrize(
    ("name", "make", "macs", "overrides"),
    [
        ("ddpm-cifar10", ddpm, 0.75, ["data.image_column=image", "prune.min_units=1"]),
        ("dit-xl-2-256", lambda place: dit_latent(), 0.6, ["data.resolution=16", "data.eval_split=test"]),
        ("sd15", stable_diffusion, 0.8, ["data.resolution=16"]),
    ],
)
def test_the_recipes_for_real_models_on_tiny_models_of_their_classes(
    workplace, features, captioned, name, make, macs, overrides
):
    make(workplace).save_pretrained(workplace / "model")
    run_recipe(name, [*SMALL, f"evaluate.features={features[3]}", f"prune.target.macs={macs}", *overrides])
    run = workplace / "runs" / name
    assert all((run / stage / "DONE").is_file() for stage in STAGES)
    plan = json.loads((run / "plan" / "plan.json").read_text())
    assert plan["meta"]["macs"]["plan"] / plan["meta"]["macs"]["dense"] == pytest.approx(macs, abs=0.1)
    pipeline = DiffusionPipeline.from_pretrained(run / "export" / "diffusers")
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    count = sum(p.numel() for p in denoiser.parameters())
    assert count == pytest.approx(plan["meta"]["params"]["plan"], rel=0.02)


def test_a_text_to_image_pipeline(workplace, features, captioned):
    stable_diffusion(workplace).save_pretrained(workplace / "model")
    recipe = write_recipe(workplace, features[3], data=captioned, macs=0.8)
    run_recipe(recipe, ["evaluate.guidance_scale=3.0", "calibrate.sink_weights.rho=3"])
    check_complete(workplace / "runs" / "tiny", 0.8)
    pipeline = DiffusionPipeline.from_pretrained("runs/tiny/export/diffusers")
    plan = json.loads(Path("runs/tiny/plan/plan.json").read_text())
    count = sum(p.numel() for p in pipeline.unet.parameters())
    assert count == pytest.approx(plan["meta"]["params"]["plan"], rel=0.02)
    data = json.loads(Path("runs/tiny/report/data.json").read_text())
    assert set(data["captions"]) == {"a red cat", "a blue dog"}
    assert data["sink_detection"] == {"mode": "ratio", "rho": 3.0}
    network = f"evaluate.networks.clip={tiny_clip(workplace / 'clip')}"
    run_recipe(
        recipe, ["evaluate.guidance_scale=3.0", "evaluate.metrics=[clip_score]", network], until="evaluate"
    )
    scores = json.loads(Path("runs/tiny/evaluate/metrics.json").read_text())
    assert all(0 <= found["clip_score"] <= 100 for found in scores.values())
    assert "clip_score" in scores["dense"]


def test_calibration_on_sampling_trajectories(workplace, features, captioned):
    stable_diffusion(workplace).save_pretrained(workplace / "model")
    recipe = write_recipe(workplace, features[3], data=captioned, macs=0.8)
    sampling = ["calibrate.provider=sampling", "calibrate.num_steps=3", "calibrate.guidance_scale=2.0"]
    sampling.append("calibrate.timestep_buckets=3")
    for criterion in ("probe_obs", "sink_influence"):
        asked = [*sampling, f"score.criterion={criterion}"]
        run_recipe(recipe, asked, until="prune")
        run = Run(load_recipe(recipe, asked))
        assert all(torch.isfinite(score).all() for score in run.scores.values.values())
    recordings = [result for result in Store("runs/.store").results() if result.kind == "recording"]
    assert len(recordings) == 1, "both criteria read the same recorded calls"
    assert pruning.load("runs/tiny/prune/model")[0].config["_class_name"] == "UNet2DConditionModel"


def test_gradients_are_refused_on_sampling_trajectories_before_anything_runs(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    with pytest.raises(PruningError, match=r"calibrate\.provider: 'sampling' has no targets.*'taylor'"):
        run_recipe(recipe, ["calibrate.provider=sampling", "score.criterion=taylor"])
    assert not (workplace / "runs").exists() or not list((workplace / "runs").iterdir())


def test_a_run_that_was_stopped_in_recovery_goes_on_to_the_same_result(
    workplace, features, monkeypatch, caplog
):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, ["name=whole"], until="recover")

    def stop(info):
        if info.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("pruning.stages.recovering._progress", lambda run: stop)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, ["name=stopped", "store=elsewhere"], until="recover")
    assert not (workplace / "runs/stopped/recover").exists()
    assert not (workplace / "runs/stopped/.lock").exists()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    with caplog.at_level("INFO"):
        run_recipe(recipe, ["name=stopped", "store=elsewhere"], until="recover")
    assert "recover   resumed at step 2 of 3" in caplog.text
    assert re.search(r"recover   done in [\d.]+ s in all, [\d.]+ s of them in this session", caplog.text)
    losses = [
        json.loads((workplace / f"runs/{name}/recover/losses.json").read_text())
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


def test_a_criterion_that_needs_less_reuses_the_calibration(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, ["score.criterion=sink"], until="plan")
    less = [
        "score.criterion=obs",
        "prune.compensation=fold",
        "prune.kinds=[ffn_channels]",
        "prune.target.macs=0.9",
    ]
    run_recipe(recipe, less, until="prune")
    store = Store("runs/.store")
    assert [result.kind for result in store.results()].count("calibrate") == 1
    run_recipe(recipe, ["score.criterion=taylor"], until="score")
    asked = json.loads((workplace / "runs/tiny/calibrate/manifest.json").read_text())["asked"]
    assert "taylor" in asked["needs"]


def test_fresh_reuses_nothing(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="plan")
    before = times(workplace / "runs/tiny")
    kept = {result.name for result in Store("runs/.store").results()}
    run_recipe(recipe, until="plan", fresh=True)
    after = times(workplace / "runs/tiny")
    assert after.keys() == before.keys() == {"calibrate", "score", "plan"}
    assert not set(after.values()) & set(before.values())
    assert {result.name for result in Store("runs/.store").results()} == kept
    with pytest.raises(PruningError, match=r"--from prune comes after --until plan"):
        run_recipe(load_recipe(recipe), start="prune", until="plan")


def times(run: Path) -> dict[str, int]:
    """Return when each finished stage was finished."""
    return {done.parent.name: done.stat().st_mtime_ns for done in run.glob("*/DONE")}


@pytest.mark.parametrize(
    ("file", "redone"),
    [
        ("calibrate/stats/part-000.safetensors", "calibrate"),
        ("plan/plan.json", "plan"),
        ("prune/model/config.json", "prune"),
    ],
)
def test_a_damaged_file_is_made_again_as_it_was_so_that_what_follows_stays(
    workplace, features, caplog, file, redone
):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="prune")
    run, before = workplace / "runs/tiny", times(workplace / "runs/tiny")
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[: len(whole) // 2])
    run_recipe(recipe, until="prune")
    assert f"{file} was changed since it was written; what is there is in " in caplog.text
    after = times(run)
    assert [stage for stage in before if after[stage] != before[stage]] == [redone]
    assert (run / file).read_bytes() == whole
    kept = list((workplace / "runs/.store/.aside").glob(f"*/*/{file.partition('/')[2]}"))
    assert kept
    assert all(path.read_bytes() == whole[: len(whole) // 2] for path in kept)


def test_an_earlier_stage_that_is_damaged_is_redone_before_the_one_asked_for(workplace, features, caplog):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="prune")
    (workplace / "runs/tiny/plan/plan.json").write_text("{}")
    run_recipe(recipe, start="prune", until="prune")
    assert "plan/plan.json was changed since it was written" in caplog.text
    assert times(workplace / "runs/tiny").keys() == {"calibrate", "score", "plan", "prune"}


def test_a_stage_redone_on_demand_with_the_same_result_leaves_those_after_it(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, until="plan")
    before = times(workplace / "runs/tiny")
    run_recipe(recipe, start="calibrate", until="calibrate")
    after = times(workplace / "runs/tiny")
    assert [stage for stage in before if after[stage] != before[stage]] == ["calibrate"]


@pytest.mark.parametrize("how", [{"start": "export"}, {"fresh": True}])
def test_what_cannot_be_done_anew_stays_as_it_was(workplace, features, monkeypatch, how):
    save_bare(dit(sample_size=16), workplace)
    recipe, run = write_recipe(workplace, features[1]), workplace / "runs/tiny"
    run_recipe(recipe, ["evaluate.metrics=[denoising,cost]"])
    kept = ("summary.json", "calibrate/manifest.json", "export/manifest.json", "report/report.html")
    before = {name: (run / name).read_bytes() for name in kept}
    for stage in ("pruning.stages.exporting.write_export", "pruning.calibration.first_pass"):
        monkeypatch.setattr(stage, lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, ["evaluate.metrics=[denoising,cost]", "title=New"], **how)
    assert {name: (run / name).read_bytes() for name in kept} == before
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    run_recipe(recipe, ["evaluate.metrics=[denoising,cost]"])
    assert {name: (run / name).read_bytes() for name in kept} == before


def test_a_first_stage_that_failed_does_not_hold_the_directory(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    with monkeypatch.context() as broken:
        broken.setattr("pruning.calibration.first_pass", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe, until="calibrate")
    assert (workplace / "runs/tiny/run.json").is_file()
    save_bare(dit(sample_size=16, num_layers=2), workplace)
    run_recipe(recipe, until="calibrate")


def test_a_broken_image_is_named_and_the_run_goes_on_when_it_is_mended(workplace, features, monkeypatch):
    save_bare(unet2d(sample_size=16), workplace)
    for split, count in (("train", 12), ("test", 6)):
        folder = workplace / "images" / split
        folder.mkdir(parents=True)
        for k in range(count):
            Image.new("L", (16, 16), 20 * k).save(folder / f"{k:02}.png")
    recipe = load_recipe(write_recipe(workplace, features[1], data=str(workplace / "images")))
    monkeypatch.setattr(
        "pruning.data.ImageData.check_readable", lambda self, labels: None
    )  # too large to see all
    row = next(row for row in range(12) if row not in Run(recipe).choose("train", 6))
    broken = workplace / "images" / "train" / f"{row:02}.png"
    broken.write_bytes(b"not an image")
    message = (
        rf"^stage 'recover': .*the image in row {row} \(column 'image', file .*{broken.name}\) cannot be read"
    )
    with pytest.raises(PruningError, match=message):
        run_recipe(recipe, until="recover")
    before = times(workplace / "runs/tiny")
    assert before.keys() == {"calibrate", "score", "plan", "prune"}
    Image.new("L", (16, 16)).save(broken)
    run_recipe(recipe, until="recover")
    after = times(workplace / "runs/tiny")
    assert after.keys() == {*before, "recover"}
    assert before.items() <= after.items()


WAITS = """
import sys, time
from pathlib import Path
from pruning import calibration
from pruning.cli import main

def wait(*args, **kwargs):
    Path("inside").touch()
    while not Path("go").exists():
        time.sleep(0.05)
    return first_pass(*args, **kwargs)

first_pass, calibration.first_pass = calibration.first_pass, wait
sys.exit(main(["calibrate", "tiny.yaml"]))
"""


def test_a_second_process_is_refused_in_the_middle_of_a_stage_and_the_first_goes_on(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    write_recipe(workplace, features[1])
    root = str(Path(pruning.__file__).parents[1])
    options = {"env": {**os.environ, "PYTHONPATH": root}, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([sys.executable, "-c", WAITS], **options)
    try:
        while not Path("inside").exists():
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        second = subprocess.run(
            [sys.executable, "-m", "pruning", "calibrate", "tiny.yaml", "seed=1"], **options
        )
        assert second.returncode == 2
        assert f"in use by process {first.pid} on " in second.stderr
    finally:
        Path("go").touch()
        errors = first.communicate(timeout=120)[1]
    assert first.returncode == 0, errors
    assert (workplace / "runs/tiny/calibrate/DONE").is_file()
    assert "seed: 0" in (workplace / "runs/tiny/recipe.yaml").read_text()
    assert not (workplace / "runs/tiny/.lock").exists()


def test_the_command_from_run_to_comparison(workplace, features, capsys):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    write_recipe(workplace, features[1])
    few = ["evaluate.metrics=[cost,fid]", "recover.enabled=false"]
    assert main(["run", "tiny.yaml", *few, "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    last = json.loads(captured.out)
    assert last["path"] == "runs/tiny/report/report.html"
    assert last["frechet_pruned"] > 0
    assert " first; stop with" not in captured.err
    assert main(["plan", "tiny.yaml", "name=other", "seed=1", "prune.target.macs=0.85"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("runs/other/plan\n")
    assert captured.err.startswith("plan needs calibrate, score first; stop with Ctrl-C")
    assert main(["run", "tiny.yaml", "name=other", "seed=1", "prune.target.macs=0.85", *few]) == 0
    out = capsys.readouterr()
    assert "Fréchet distance on random features" in out.out
    assert "score     unchanged, reused" in out.err

    assert main(["push", "runs/tiny", "--repo", "me/tiny", "--dry-run"]) == 0
    out = capsys.readouterr()
    assert "nothing has been sent" in out.out
    assert "the card states no licence" in out.err
    card = Path("runs/tiny/push/README.md").read_text()
    assert str(workplace) not in card
    assert "args:" in card  # the interval of a distance

    assert main(["report", "runs/tiny", "runs/other"]) == 0
    assert capsys.readouterr().out.endswith("runs/report.html\n")
    assert Path("runs/report.html").is_file()
    assert main(["report", "runs/tiny", "--output", "tiny.yaml/r.html"]) != 0
    assert (
        "cannot write the report in tiny.yaml: a file of that name is in the way" in capsys.readouterr().err
    )
    assert main(["plan", "tiny.yaml", "name=third"]) == 0
    assert main(["report", *map(str, sorted(Path("runs").iterdir()))]) == 0  # runs/*, the comparison included
    said = "runs/third has no report and is left out: stopped after plan; `sinkprune run runs/third` would still do "
    assert f"{said}prune, recover, evaluate, export, report" in capsys.readouterr().err
    assert main(["show", "runs/tiny"]) == 0
    assert "attention_heads" in capsys.readouterr().out
    assert main(["diff", "runs/tiny", "runs/other", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["prune.target.macs"] == [0.75, 0.85]
    assert found["figures"]["macs_ratio"][0] < found["figures"]["macs_ratio"][1]
    assert main(["diff", "runs/tiny", "runs/third"]) == 0
    assert "frechet pruned" in capsys.readouterr().out
    assert main(["diff", "runs/third", "runs/third"]) == 0
    assert "frechet pruned" not in capsys.readouterr().out, "neither run knows it"
    assert main(["run", "runs/tiny", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["basis"] == "scores"


def launch(
    processes: int, *arguments: str, program: str = "-m pruning", fails: bool = False, **environment: str
) -> None:
    """Run the command in so many processes of one launch, each on one thread."""
    root = str(Path(pruning.__file__).parents[1])
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *program.split(), *arguments]
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(workplace, features, monkeypatch):
    monkeypatch.setattr(conditions, "LEVELS", NOISE_LEVELS)  # that of the processes
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, ["name=one"], until="recover")
    launch(2, "run", "tiny.yaml", "name=two", "--until", "recover")
    losses = [
        json.loads(Path(f"runs/{name}/recover/losses.json").read_text())["loss"] for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (workplace / "runs/two/recover/DONE").is_file()


SHARED = (
    "recover.enabled=false",  # which rounds differently for other numbers of processes
    "evaluate.metrics=[fid,kid,pairs,precision_recall,consistency,denoising,cost]",
    "evaluate.num_samples=20",
)


def evaluated(place: Path) -> dict[str, Any]:
    """Return what the run in a folder measured, and hashes of all that it drew and extracted."""
    drawn = sorted(
        path
        for what in ("samples", "image_features")
        for path in place.glob(f".store/{what}/*/*.safetensors")
    )
    found = {path.relative_to(place).as_posix(): file_hash(path) for path in drawn}
    assert len(found) == 5  # of two models, and of the features of the data
    return {**found, "metrics": json.loads((place / "tiny/evaluate/metrics.json").read_text())}


@pytest.mark.slow
def test_an_evaluation_is_the_same_bit_for_bit_for_any_number_of_processes(workplace, features):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    write_recipe(workplace, features[1])
    found = {}
    for processes in (1, 2, 3):
        place = workplace / f"of{processes}"
        asked = ("run", "tiny.yaml", *SHARED, f"run_dir={place}/tiny", "--until", "evaluate")
        launch(processes, *asked)
        found[processes] = evaluated(place)
    assert found[1] == found[2] == found[3]


LOGGED = """
import os, sys
from eval.sharing import BatchFiles
from pruning.cli import main

make, left = BatchFiles.make, int(os.environ["LIVES"])

def logged(files, numbers):
    global left
    for number in numbers:
        left -= 1
        if left < 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), 9)
        make(files, [number])
        with open("made", "a") as log:
            print(files.folder.parents[1].name, number, file=log)

BatchFiles.make = logged
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_launch_that_is_killed_while_it_evaluates_makes_no_sample_again(workplace, features):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    write_recipe(workplace, features[1])
    (workplace / "logged.py").write_text(LOGGED)
    place, made = workplace / "killed", workplace / "made"
    asked = ("run", "tiny.yaml", *SHARED, f"run_dir={place}/tiny", "--until", "evaluate")
    launch(2, *asked, program="logged.py", fails=True, LIVES="8")
    before = made.read_text().splitlines()
    assert 8 < len(before) < 7 * 4  # batches of the data's features and of the dense model's samples
    assert list(place.glob(".store/.partial/*/.scratch/*/*.safetensors"))
    launch(2, *asked, program="logged.py", LIVES="1000")
    after = made.read_text().splitlines()
    assert len(set(after)) == len(after) > len(before)
    whole = workplace / "whole"
    launch(1, *asked[:-3], f"run_dir={whole}/tiny", *asked[-2:])
    assert evaluated(place) == evaluated(whole)


def test_units_are_chosen_block_by_block_where_asked(workplace, features):
    unet2d(in_channels=1, out_channels=1, sample_size=16).save_pretrained(workplace / "model" / "unet")
    DDPMScheduler().save_pretrained(workplace / "model" / "scheduler")
    recipe = str(write_recipe(workplace, features[1]))
    asked = ["--quiet", "--until", "prune", "recover.enabled=false"]
    assert main(["run", recipe, *asked]) == 0
    run = Path("runs/tiny")
    plan = (run / "plan/plan.json").read_bytes()
    assert json.loads((run / "prune/plan.json").read_text())["kept"] == json.loads(plan)["kept"]
    assert main(["run", recipe, *asked, "prune.selection=block_by_block", "prune.rounds=2"]) == 0
    assert (run / "plan/plan.json").read_bytes() == plan
    sizes, chosen = (
        {
            group: len(units)
            for group, units in json.loads((run / stage / "plan.json").read_text())["kept"].items()
        }
        for stage in ("plan", "prune")
    )
    assert chosen == sizes
    model = UNet2DModel.from_pretrained(run / "prune/model")
    assert torch.isfinite(model(torch.randn(1, 1, 16, 16), 5).sample).all()
    manifest = json.loads((run / "prune/manifest.json").read_text())
    assert manifest["result"]["selection"] == "block_by_block"


def test_modulation_layers_and_embedders_take_a_smaller_form_where_asked(workplace, features, capsys):
    model = dit(sample_size=16)
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(workplace / "model" / "transformer")
    DDPMScheduler().save_pretrained(workplace / "model" / "scheduler")
    recipe = str(write_recipe(workplace, features[1]))
    asked = ["--quiet", "prune.modulation_error=0.5", "prune.share_embedders=true"]
    assert main(["run", recipe, "--dry-run", *asked]) == 0
    assert "3 modulation layers are taken to have an eighth of their full rank" in capsys.readouterr().err
    assert main(["run", recipe, *asked]) == 0
    run = Path("runs/tiny")
    said = json.loads((run / "plan/smaller_forms.json").read_text())
    ranks = {one["module"]: one["rank"] for one in said["modulation"]}
    assert all(one["rank"] and 0 < one["lost"] <= 0.5 for one in said["modulation"])
    plan = json.loads((run / "prune/plan.json").read_text())
    assert plan["ranks"] == ranks
    assert len(plan["shared"][0]) == 3
    slim, _ = pruning.load(str(run / "export/diffusers"))
    entry = slim.config["_structured_pruning"]
    assert entry["ranks"] == ranks
    assert len(entry["shared"]) == 2
    assert plan["meta"]["params"]["plan"] == pytest.approx(
        sum(p.numel() for p in slim.parameters()), rel=1e-2
    )
    page = (run / "report/report.html").read_text()
    assert "3 of 3 modulation layers took a low-rank form" in page
    assert "3 embedders that were equal, weight for weight, became 1" in page
    with pytest.raises(PruningError, match=r"no modulation layers .* but such of a low-rank form already"):
        run_recipe(
            recipe, ["name=again", f"model.source={run}/export/diffusers", "prune.modulation_error=0.5"]
        )


def test_a_model_without_modulation_layers_is_told_before_the_work(workplace, features):
    unet2d(in_channels=1, out_channels=1, sample_size=16).save_pretrained(workplace / "model" / "unet")
    DDPMScheduler().save_pretrained(workplace / "model" / "scheduler")
    with pytest.raises(
        PruningError, match=r"prune.modulation_error: UNet2DModel .* has no modulation layers"
    ):
        run_recipe(write_recipe(workplace, features[1]), ["prune.modulation_error=0.05"])
    assert not Path("runs/tiny/calibrate").exists()


def test_blocks_are_chosen_by_measuring_sets_of_them(workplace, features, capsys):
    save_bare(dit(sample_size=16, num_layers=7), workplace)
    recipe = str(write_recipe(workplace, features[1], macs=0.575))
    kinds, limits = "prune.kinds=[ffn_channels,blocks]", "prune.limits=[{match: '*channels', max_ratio: 0.4}]"
    asked = [recipe, kinds, limits, "prune.depth.samples=4"]
    assert main(["run", *asked, "--dry-run", "prune.depth.budget=12"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    forwards = 13 * 4 * 2  # the dense model and 12 sets, samples, timesteps
    assert f"up to 12 sets of blocks are measured, {forwards} forwards of one sample" in said
    assert not Path("runs").exists()

    assert main(["run", *asked, "--until", "plan"]) == 0
    run = Path("runs/tiny")
    added = json.loads((run / "plan/plan.json").read_text())
    assert not (run / "plan/depth.json").exists()
    capsys.readouterr()
    assert main(["run", *asked, "prune.depth.budget=12", "prune.compensation=fold"]) == 0
    assert (
        "sets of blocks were measured; without those chosen the output changes by" in capsys.readouterr().err
    )
    plan, trace = (json.loads((run / f"plan/{name}.json").read_text()) for name in ("plan", "depth"))
    assert trace["start"]["removed"] == added["removed_blocks"]
    assert trace["chosen"]["removed"] == plan["removed_blocks"]
    assert trace["chosen"]["change"] <= trace["start"]["change"]
    assert 0 < len(trace["measured"]) <= 12
    assert trace["forwards"] == 8 * (len(trace["measured"]) + 1)
    assert plan["meta"]["hit"]
    figures = json.loads((run / "plan/manifest.json").read_text())["result"]["depth"]
    assert figures["change"] == trace["chosen"]["change"] / trace["power"]
    check_complete(run, 0.575)
    assert "Which blocks go together" in (run / "report/report.html").read_text()
    slim = DiTTransformer2DModel.from_pretrained(run / "prune/model")
    assert len(slim.transformer_blocks) == 7 - len(plan["removed_blocks"])

    searches = len(list(Path("runs/.store").glob("plan*")))
    assert main(["run", *asked, "prune.depth.budget=12", "--until", "plan"]) == 0
    assert "reused" in capsys.readouterr().err
    assert len(list(Path("runs/.store").glob("plan*"))) == searches


@pytest.mark.parametrize("family", ["dit", "unet2d"])
def test_the_best_of_several_candidates_goes_through_the_run(workplace, features, capsys, family):
    model = dit(sample_size=16) if family == "dit" else unet2d(in_channels=1, out_channels=1, sample_size=16)
    save_bare(model, workplace)
    recipe = str(write_recipe(workplace, features[1]))
    asked = [recipe, "prune.candidates=6", "prune.candidate_samples=3"]
    asked += ["prune.kinds=[attention_heads,ffn_channels,resnet_channels,blocks]"]
    assert main(["run", *asked, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "6 candidates are then measured (prune.candidates): probe_obs, as in the recipe;" in said
    assert main(["run", *asked]) == 0
    assert "6 candidates came to" in capsys.readouterr().err
    run = Path("runs/tiny")
    summary = check_complete(run, 0.75)
    trace = json.loads((run / "plan/candidates.json").read_text())
    best = trace["rows"][trace["chosen"]]
    assert summary["candidates"]["chosen"] == best["name"]
    assert trace["samples"] == 3
    html = (run / "report/report.html").read_text()
    assert "6 candidates for the same target came to" in html
    assert f"chosen: {best['name']}" in html
    assert best["name"] in (run / "export/diffusers/README.md").read_text()
    assert main(["show", str(run)]) == 0
    assert best["criterion"] in capsys.readouterr().out
    assert main(["run", *asked]) == 0
    assert "reused" in capsys.readouterr().err
    assert main(["clean"]) == 0
    assert len(list(Path("runs/.store/candidate").iterdir())) == 6


def test_candidates_of_recorded_calls_are_measured_on_other_samples(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    asked = ["calibrate.provider=sampling", "calibrate.num_steps=2", "prune.candidates=3"]
    run_recipe(recipe, [*asked, "prune.candidate_samples=2", "recover.enabled=false"], until="prune")
    trace = json.loads(Path("runs/tiny/plan/candidates.json").read_text())
    assert trace["held_out"]
    assert trace["samples"] == 2
    run = Run(load_recipe(recipe, [*asked, "prune.candidate_samples=2", "recover.enabled=false"]))
    judged = judging.unseen_by_calibration(run)
    assert sorted({int(i) for batch in judged for i in batch.sample_ids}) == [6, 7]  # calibration has 0 to 5


def test_timesteps_weigh_as_the_sampler_feels_them(workplace, features):
    save_bare(dit(sample_size=16), workplace)
    recipe = write_recipe(workplace, features[1])
    run_recipe(recipe, ["calibrate.timestep_weights=sampler", "score.weighting=influence"], until="score")
    run = Run(load_recipe(recipe))
    uniform = Run(load_recipe(recipe, ["run_dir=runs/uniform"]))
    run_recipe(recipe, ["run_dir=runs/uniform"], until="score")
    assert any(
        not torch.allclose(values, uniform.scores.values[name]) for name, values in run.scores.values.items()
    )


@pytest.mark.parametrize(
    "off",
    [
        (
            "evaluate.latency.sampling_runs=0",
            "recover.checkpoint_every=0",
            "recover.ema_decay=0",
            "recover.grad_clip=null",
            "recover.distill_weight=0",
            "recover.label_dropout=0",
            "recover.warmup_steps=0",
            "calibrate.diagnostics=false",
            "prune.compensation=none",
            "prune.ridge=0",
            "score.weighting=off",
        ),
        ("recover.enabled=false", "evaluate.metrics=[]", "export.formats=[]", "prune.target.ratio=0"),
    ],
)
def test_every_value_that_means_off_is_run_to_the_end(workplace, features, off):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    run_recipe(write_recipe(workplace, features[1]), list(off))
    assert all((workplace / "runs/tiny" / stage / "DONE").is_file() for stage in STAGES)
    assert "<html" in (workplace / "runs/tiny/report/report.html").read_text()


def test_what_would_stop_evaluation_or_export_is_said_before_the_work(workplace, features, monkeypatch):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    recipe = write_recipe(workplace, features[1])
    for attempt, message in (
        ("pruning.stages.rehearsal.rehearse_sample", "stage 'evaluate' would stop at this: no sample"),
        ("pruning.stages.rehearsal.check_export", "stage 'export' would stop at this: no card"),
    ):
        with monkeypatch.context() as patch:
            text = message.rpartition(": ")[2]
            patch.setattr(attempt, Mock(side_effect=PruningError(text)))
            with pytest.raises(PruningError, match=message):
                run_recipe(recipe)
    assert not (workplace / "runs").exists() or not list((workplace / "runs").glob("*/calibrate"))


def test_a_pipeline_with_a_pickled_part_is_refused_before_the_work(workplace, features, captioned):
    stable_diffusion(workplace).save_pretrained(workplace / "model")
    weights = next((workplace / "model" / "vae").glob("*.safetensors"))
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    recipe = write_recipe(workplace, features[3], data=captioned, macs=0.8)
    with pytest.raises(PruningError, match=r"vae.*\.bin|\.bin.*vae"):
        run_recipe(recipe)
    assert not list((workplace / "runs").glob("*/calibrate"))


def test_a_sweep_measures_the_dense_model_once(workplace, features):
    save_bare(dit(sample_size=16, patch_size=4), workplace)
    recipe = write_recipe(workplace, features[1])
    for percent in (70, 75, 80, 85, 90):
        run_recipe(recipe, [f"name=at-{percent}", f"prune.target.macs={percent / 100}"])
    kinds = [result.kind for result in Store("runs/.store").results()]
    assert (kinds.count("calibrate"), kinds.count("first_pass"), kinds.count("score")) == (1, 1, 1)
    for what in ("samples", "denoising", "cost"):
        assert kinds.count(what) <= 1 + 2 * 5, what
    dense = json.loads(Path("runs/at-70/run.json").read_text())["results"]["evaluate"]
    shared = set(dense).intersection(
        *(json.loads(path.read_text())["results"]["evaluate"] for path in Path("runs").glob("at-*/run.json"))
    )
    looked_at = {"recording", "samples", "image_features", "denoising", "cost"}
    assert {name.partition("/")[0] for name in shared} == looked_at
    figures = [
        json.loads(path.read_text())["dense"]["denoising_error_mean"]
        for path in Path("runs").glob("at-*/evaluate/metrics.json")
    ]
    assert len(figures) == 5
    assert len(set(figures)) == 1
