"""Recorded calls: batches, images, calibration and recovery from them, and recordings that are stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.calibration import calibrate
from pruning.data.batches import NoisedBatches, bucket_edges
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.recording import RecordedCalls, record, recorded_batches
from pruning.recording.batches import bucket_of, renoised
from pruning.recording.cutting import points_of
from pruning.recording.decoding import DECODING, Decoding
from pruning.recording.trees import copied, decoded, encoded
from pruning.recovery import recover_recorded
from pruning.recovery.recorded import RecordedSource
from pruning.settings import Recover
from tests.pipelines import PIPELINES

SMALL = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 3, "warmup_steps": 1}


def recorded(name: str, folder: Path, **how: Any) -> tuple[Any, RecordedCalls]:
    tiny = PIPELINES[name]
    pipeline = tiny.build()
    return pipeline, record(pipeline, tiny.inputs, folder, call=tiny.call, **how)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RecordedCalls]:
    return recorded("flux", tmp_path_factory.mktemp("flux") / "calls", points=4)


def test_points_are_one_of_each_part_and_move_on_with_the_sample():
    assert points_of(0, 8, 4) == {0, 2, 4, 6}
    assert points_of(1, 8, 4) == {1, 3, 5, 7}
    assert points_of(3, 4, 8) == {0, 1, 2, 3}
    assert {step for sample in range(5) for step in points_of(sample, 20, 4)} == set(range(20))


def test_trees_come_back_from_json():
    tree = {
        "x": torch.arange(6).view(2, 3),
        "more": [(1, None), {"flag": True, "far": float("inf")}],
        "type": torch.bfloat16,
    }
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> str:
        kept[str(len(kept))] = tensor
        return str(len(kept) - 1)

    back = decoded(json.loads(json.dumps(encoded(tree, keep, "here"))), kept.__getitem__)
    assert torch.equal(back.pop("x"), tree.pop("x"))
    assert back == tree
    with pytest.raises(
        PruningError, match=r"here: the argument cache is a object, which cannot be kept on disk"
    ):
        encoded({"cache": object()}, keep, "here")


def test_a_view_is_copied_without_what_it_is_of() -> None:
    large = torch.zeros(1000, 1000)
    tree = copied({"args": (large[:1], [large[:, 0].expand(2, 1000)]), "kwargs": {"none": None}})
    assert tree["args"][0].untyped_storage().nbytes() == 4000
    assert tree["args"][1][0].untyped_storage().nbytes() == 8000
    assert tree["kwargs"] == {"none": None}


def test_the_pipeline_is_left_as_it_was(tmp_path: Path):
    pipeline, calls = recorded("flux", tmp_path / "calls", points=2)
    again = PIPELINES["flux"].build()
    assert dict(pipeline.scheduler.config) == dict(again.scheduler.config)
    assert "step" in vars(type(pipeline.scheduler))
    assert "forward" not in vars(pipeline.transformer)
    assert not pipeline.transformer._forward_pre_hooks
    assert not pipeline.transformer._forward_hooks
    assert not pipeline._progress_bar_config or not pipeline._progress_bar_config.get("enable", False)
    assert len(calls.rows) == 3 * 2


def test_one_of_two_denoisers_may_have_no_call_among_the_points(tmp_path: Path):
    tiny = PIPELINES["wan-two-experts"]
    calls = record(tiny.build(), tiny.inputs[:1], tmp_path / "calls", call=tiny.call, points=1)
    assert {row.denoiser for row in calls.rows} < calls.denoisers.keys()


def test_a_whole_recording_is_asked_for_again_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, calls = recorded("ddim", tmp_path / "calls", for_images=True)
    monkeypatch.setattr("pruning.recording.writing.learn", None)
    assert len(recorded("ddim", tmp_path / "calls", for_images=True)[1].rows) == len(calls.rows)


def test_what_repeats_is_stored_once(flux: tuple[Any, RecordedCalls]):
    _, calls = flux
    keys = [key for row in calls.rows for key in re.findall(r'"tensor": "(\w+)"', json.dumps(row.tree))]
    assert keys
    assert len(set(keys)) < len(keys) / 2
    assert calls.head.bytes == pytest.approx(sum(p.stat().st_size for p in calls.folder.iterdir()), rel=0.5)


def test_batches_hold_every_row_once_from_the_least_noise_on(flux: tuple[Any, RecordedCalls]):
    _, calls = flux
    batches = recorded_batches(calls, batch_size=2, timestep_buckets=4)
    found = list(batches)
    assert [b.bucket for b in found] == sorted(b.bucket for b in found)
    assert sum(len(b.sample_ids) for b in found) == len(calls.rows) == batches.rows
    assert all(b.target is None for b in found)
    assert not batches.has_targets
    assert recorded_batches(calls, timestep_buckets=4, device="meta").device == torch.device("meta")
    some = recorded_batches(calls, batch_size=8, timestep_buckets=4, samples=[1])
    assert {int(i) for b in some for i in b.sample_ids} == {1}


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"timestep_buckets": 9}, "timestep_buckets 9: must be 1 to 4, the number of sampling steps"),
        ({"source": "noise"}, "source 'noise' is unknown; valid: points, x0"),
        ({"samples": [7]}, "sample 7 asked; 3 were recorded"),
        (
            {"denoiser": "unet"},
            r"'unet' was not recorded; recorded are transformer \(FluxTransformer2DModel\)",
        ),
    ],
)
def test_batches_that_cannot_be_are_refused_at_once(flux: tuple[Any, RecordedCalls], how: Any, fault: str):
    with pytest.raises(PruningError, match=fault):
        recorded_batches(flux[1], **{"timestep_buckets": 4, **how})


def test_latents_made_anew_are_the_law_and_the_target_is_what_the_pipeline_makes_of_it(
    flux: tuple[Any, RecordedCalls],
):
    _, calls = flux
    row = calls.rows[1]
    (level,) = row.levels or ()
    eps = torch.randn(calls.end(row, 0).shape, generator=torch.Generator().manual_seed(1))
    tree, target = renoised(calls, row, 0, {0: eps})
    x = level.signal * calls.end(row, 0) + level.noise * eps
    torch.testing.assert_close(tree["hidden_states"], x)
    torch.testing.assert_close(target, eps - calls.end(row, 0))
    torch.testing.assert_close(x - level.noise * target, calls.end(row, 0))


@pytest.mark.parametrize("name", ["flux", "qwen-image", "sana", "sd3", "ddim", "z-image", "flux2"])
def test_latents_of_images_are_what_is_decoded_back(name: str, tmp_path: Path):
    _, calls = recorded(name, tmp_path / "calls", points=2, for_images=True)
    decoding = Decoding.load(calls.folder / DECODING)
    x0 = torch.rand(decoding.latent, generator=torch.Generator().manual_seed(0))
    z = (decoding.scale * x0.flatten()[decoding.order] + decoding.shift).view(decoding.decoded)
    flat = torch.empty(x0.numel())
    flat[decoding.order] = (z.flatten() - decoding.shift) / decoding.scale
    torch.testing.assert_close(flat.view_as(x0), x0)
    assert sorted(decoding.order.tolist()) == list(range(x0.numel()))
    assert (decoding.autoencoder is None) == (name == "ddim")


def test_a_row_is_in_the_bucket_whose_edges_hold_its_position(flux: tuple[Any, RecordedCalls]):
    row = flux[1].rows[0]
    for steps, buckets in ((5, 2), (20, 8), (7, 7)):
        parts = enumerate(pairwise(bucket_edges(steps, buckets)))
        of_step = {steps - 1 - place: part for part, edges in parts for place in range(*edges)}
        assert of_step == {step: bucket_of(replace(row, step=step), steps, buckets) for step in range(steps)}


def test_statistics_come_from_recorded_points_and_say_what_they_lack(flux: tuple[Any, RecordedCalls]):
    pipeline, calls = flux
    groups = find_groups(pipeline.transformer, ["ffn_channels"])
    batches = recorded_batches(calls, batch_size=4, timestep_buckets=4)
    stats = calibrate(pipeline.transformer, groups, batches, needs=["input_moment", "probe_diag"])
    assert stats.meta["samples"] == [3.0] * 4
    with pytest.raises(PruningError, match="needs to know what the model should answer"):
        calibrate(pipeline.transformer, groups, batches, needs=["diff_pruning"])
    anew = recorded_batches(calls, source="x0", batch_size=4, timestep_buckets=4)
    assert anew.has_targets
    assert isinstance(anew, NoisedBatches)


@pytest.mark.parametrize("source", ["points", "x0"])
def test_recovery_goes_on_where_it_was_stopped(flux: tuple[Any, RecordedCalls], source: str, tmp_path: Path):
    pipeline, calls = flux

    def student() -> Any:
        model = PIPELINES["flux"].build().transformer
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        return model

    how: dict[str, Any] = {"source": source, "device": "cpu", "seed": 2}
    whole = recover_recorded(student(), pipeline.transformer, calls, Recover(**SMALL), **how)
    with pytest.raises(KeyboardInterrupt):
        recover_recorded(
            student(),
            pipeline.transformer,
            calls,
            Recover(**SMALL),
            folder=tmp_path,
            progress=lambda info: (_ for _ in ()).throw(KeyboardInterrupt) if info.step == 4 else None,
            **how,
        )
    rest = recover_recorded(student(), pipeline.transformer, calls, Recover(**SMALL), folder=tmp_path, **how)
    assert rest.resumed_from == 3
    assert rest.losses == whole.losses
    assert whole.losses[-1][1] < whole.losses[0][1]


@pytest.mark.parametrize("source", ["points", "x0"])
def test_whole_samples_are_held_out(flux: tuple[Any, RecordedCalls], source: str, monkeypatch):
    pipeline, calls = flux
    shown: dict[int, set[int]] = {}
    build = RecordedSource.build

    def watch(self: RecordedSource, position: int, count: int) -> Any:
        batch = build(self, position, count)
        shown.setdefault(self.share.seed, set()).update(batch.sample_ids.tolist())
        return batch

    monkeypatch.setattr(RecordedSource, "build", watch)
    student = PIPELINES["flux"].build().transformer
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.9)
    settings = Recover(eval_every=3, held_out=1, train="lora", feature_weight=0.1, **SMALL)
    found = recover_recorded(
        student, pipeline.transformer, calls, settings, source=source, device="cpu", seed=2
    )
    assert found.evaluations[-1][1] < found.evaluations[0][1]
    trained = shown.pop(2)
    (held,) = shown.values()
    assert trained
    assert len(held) == 1
    assert not trained & held


def test_points_have_no_data_loss(flux: tuple[Any, RecordedCalls]):
    pipeline, calls = flux
    with pytest.raises(PruningError, match=r"distill_weight is 0\.5, but recorded points have no target"):
        recover_recorded(
            pipeline.transformer,
            pipeline.transformer,
            calls,
            Recover(distill_weight=0.5, **SMALL),
            device="cpu",
        )


@pytest.mark.parametrize("steps", [3, 12])
def test_learning_asks_the_denoiser_as_often_however_many_steps_there_are(steps: int, tmp_path: Path):
    tiny, counted = PIPELINES["sd"], list[int]()
    pipeline = tiny.build()
    pipeline.unet.conv_in.register_forward_hook(lambda *_: counted.append(1))
    record(
        pipeline,
        tiny.inputs,
        tmp_path,
        call={**tiny.call, "num_inference_steps": steps},
        points=None,
        for_images=True,
    )
    assert len(counted) == 12


def test_another_recording_in_the_folder_is_refused(flux: tuple[Any, RecordedCalls]):
    pipeline, calls = flux
    tiny = PIPELINES["flux"]
    with pytest.raises(PruningError, match=r"holds another recording: seed was 0, is 1"):
        record(pipeline, tiny.inputs, calls.folder, call=tiny.call, points=4, seed=1)


def test_a_recording_that_is_killed_goes_on(tmp_path: Path):
    """Killed while the second part is written, and run again, it holds the same rows as one that was not."""
    folders = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.test_recording", str(folders[0])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(PruningError, match="the recording is not finished: 2 of 3 samples are there"):
        RecordedCalls.open(folders[0])
    _main(str(folders[0]), kill=False)
    _main(str(folders[1]), kill=False)
    killed, whole = map(RecordedCalls.open, folders)
    assert [row.to_json() for row in killed.rows] == [row.to_json() for row in whole.rows]
    assert killed.x0 == whole.x0


def _main(folder: str, *, kill: bool) -> None:
    """Record with two samples a part; with `kill`, die before the rows of the second part are written."""
    record_module: Any = sys.modules["pruning.recording.writing"]
    record_module.PART_SAMPLES = 2
    write = record_module._write_part

    def write_part(place: Path, index: int, *rest: Any) -> None:
        if kill and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(place, index, *rest)

    record_module._write_part = write_part
    try:
        tiny = PIPELINES["flux"]
        record(tiny.build(), tiny.inputs, folder, call=tiny.call, points=2)
    finally:
        record_module._write_part = write
        record_module.PART_SAMPLES = 16


if __name__ == "__main__":
    _main(sys.argv[1], kill=True)
