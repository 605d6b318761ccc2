"""Recordings that somebody broke, or that cannot be written: one error, which names the file and what is wrong."""

from __future__ import annotations

import copy
import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruning.errors import PruningError
from pruning.recording import RecordedCalls, record, recorded_batches
from pruning.recording.decoding import DECODING
from pruning.recording.describing import describe
from pruning.recording.tensors import Tensors
from pruning.recording.writing import LOCK
from pruning.store import locked
from tests.pipelines import PIPELINES

HEAD, ROWS, TENSORS = "recording.json", "rows-00000.json", "tensors-00000.safetensors"
SIZES: dict[str, Any] = {"batch_size": 4, "timestep_buckets": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny, folder = PIPELINES["flux"], tmp_path_factory.mktemp("recorded") / "calls"
    record(tiny.build(), tiny.inputs, folder, call=tiny.call, points=2)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "calls"))


def read_all(folder: Path) -> None:
    """Read all that a recording holds, in every way."""
    calls = RecordedCalls.open(folder)
    describe(folder)
    for row in calls.rows:
        calls.arguments(row)
    for name in calls.denoisers:
        calls.example(name, 2)
    for source in ("points", "x0"):
        for _ in recorded_batches(calls, source=source, **SIZES):
            pass


Place = tuple[str | int, ...]


def change(folder: Path, name: str, place: Place, value: Any) -> None:
    """Put a value at a place of a JSON file; `Gone` takes the entry out."""
    path = folder / name
    data = inner = json.loads(path.read_text())
    for key in place[:-1]:
        inner = inner[key]
    if value is Gone:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(data))


class Gone:
    """In the place of a value: the entry is taken out."""


def nested(levels: int) -> Any:
    tree: Any = {"value": 1}
    for _ in range(levels):
        tree = {"list": [tree]}
    return tree


ROW = ("rows", 0)
TREE = (*ROW, "tree", "map", "hidden_states")
PLACE = (*ROW, "places", 0)
MAP = ("target", "maps", 0, 0)
DENOISER = ("denoisers", "transformer")
WRONG: list[tuple[str, Place, Any]] = [
    (HEAD, ("format",), 99),
    (HEAD, ("format",), Gone),
    (HEAD, ("identity",), "x"),
    (HEAD, ("identity",), {}),
    (HEAD, ("samples",), "3"),
    (HEAD, ("samples",), -1),
    (HEAD, ("samples",), True),
    (HEAD, ("samples",), 1),
    (HEAD, ("samples",), 10**30),
    (HEAD, ("steps",), 0),
    (HEAD, ("steps",), 1),
    (HEAD, ("bytes",), None),
    (HEAD, ("denoisers",), []),
    (HEAD, ("denoisers",), {}),
    (HEAD, (*DENOISER, "kind"), Gone),
    (HEAD, (*DENOISER, "inputs"), [[["hidden_states"], 7]]),
    (HEAD, (*DENOISER, "inputs"), [[["hidden_states"], -1]]),
    (HEAD, (*DENOISER, "inputs"), [[["no_such"], 0]]),
    (HEAD, (*DENOISER, "inputs"), [[["hidden_states", 0, "x"], 0]]),
    (HEAD, (*DENOISER, "inputs"), [[["hidden_states"], "list"]]),
    (HEAD, (*DENOISER, "inputs"), [[[{}], 0]]),
    (HEAD, (*DENOISER, "inputs"), [[["hidden_states"], "axis"]]),
    (HEAD, (*DENOISER, "inputs"), [["hidden_states"]]),
    (HEAD, (*DENOISER, "outputs"), 3),
    (HEAD, ("target",), "flow_prediction"),
    (HEAD, ("target", "kind"), "no_prediction"),
    (HEAD, ("target", "kind"), []),
    (HEAD, ("target", "maps"), []),
    (HEAD, (*MAP, "alpha"), 0),
    (HEAD, (*MAP, "alpha"), float("nan")),
    (HEAD, (*MAP, "beta"), float("inf")),
    (HEAD, (*MAP, "beta"), "x"),
    (HEAD, (*MAP, "place", "scale"), 0),
    (HEAD, (*MAP, "place", "path"), ["a", None]),
    (ROWS, ("keys",), ["../../../etc/passwd"]),
    (ROWS, ("keys",), "x"),
    (ROWS, ("keys",), []),
    (ROWS, ("keys",), Gone),
    (ROWS, ("keys", 0), "0" * 24),
    (ROWS, ("rows",), {}),
    (ROWS, ("rows",), "rows"),
    (ROWS, ("rows",), []),
    (ROWS, ("x0",), []),
    (ROWS, ("x0", "0"), ["0" * 24]),
    (ROWS, ("x0", "0"), "0"),
    (ROWS, ("x0", "0"), 0),
    (ROWS, ("x0", "0"), Gone),
    (ROWS, ("x0", "a"), []),
    (ROWS, ROW, 3),
    (ROWS, (*ROW, "sample"), 7),
    (ROWS, (*ROW, "sample"), 1.5),
    (ROWS, (*ROW, "step"), 99),
    (ROWS, (*ROW, "step"), -1),
    (ROWS, (*ROW, "branch"), "0"),
    (ROWS, (*ROW, "call"), None),
    (ROWS, (*ROW, "denoiser"), "unet"),
    (ROWS, (*ROW, "denoiser"), Gone),
    (ROWS, (*ROW, "t"), "late"),
    (ROWS, (*ROW, "t"), [1]),
    (ROWS, (*ROW, "t"), float("nan")),
    (ROWS, (*ROW, "levels"), [[1.0]]),
    (ROWS, (*ROW, "levels"), [["a", "b"]]),
    (ROWS, (*ROW, "levels"), [[float("nan"), 1.0]]),
    (ROWS, (*ROW, "levels"), []),
    (ROWS, (*ROW, "levels"), 3),
    (ROWS, (*ROW, "tree"), None),
    (ROWS, (*ROW, "tree"), {}),
    (ROWS, (*ROW, "tree"), {"value": 1}),
    (ROWS, (*ROW, "tree"), {"list": []}),
    (ROWS, (*ROW, "tree"), {"pickle": "gASV"}),
    (ROWS, (*ROW, "tree"), nested(40)),
    (ROWS, TREE, Gone),
    (ROWS, TREE, {"value": [1]}),
    (ROWS, TREE, {"value": 1}),
    (ROWS, TREE, {"number": "1e9"}),
    (ROWS, TREE, {"dtype": "object"}),
    (ROWS, TREE, {"map": []}),
    (ROWS, TREE, {"list": {}}),
    (ROWS, TREE, {"list": [], "map": {}}),
    (ROWS, (*TREE, "tensor"), "../" * 8),
    (ROWS, (*TREE, "tensor"), 5),
    (ROWS, (*TREE, "tensor"), ["a"]),
    (ROWS, (*TREE, "tensor"), "0" * 24),
    (ROWS, (*TREE, "shape"), [1, 2]),
    (ROWS, (*TREE, "shape"), None),
    (ROWS, (*TREE, "shape"), [-1]),
    (ROWS, (*TREE, "dtype"), "float64"),
    (ROWS, (*TREE, "dtype"), Gone),
    (ROWS, (*ROW, "places"), 3),
    (ROWS, PLACE, []),
    (ROWS, (*PLACE, "scale"), 0),
    (ROWS, (*PLACE, "scale"), "1"),
    (ROWS, (*PLACE, "scale"), True),
    (ROWS, (*PLACE, "scale"), float("nan")),
    (ROWS, (*PLACE, "scale"), float("inf")),
    (ROWS, (*PLACE, "order"), [0, 0, 0]),
    (ROWS, (*PLACE, "order"), [0, 1, 7]),
    (ROWS, (*PLACE, "order"), [0]),
    (ROWS, (*PLACE, "order"), "012"),
    (ROWS, (*PLACE, "axis"), 9),
    (ROWS, (*PLACE, "axis"), -1),
    (ROWS, (*PLACE, "axis"), "0"),
    (ROWS, (*PLACE, "path"), ["no_such"]),
    (ROWS, (*PLACE, "path"), ["hidden_states", 0]),
    (ROWS, (*PLACE, "path"), []),
    (ROWS, (*PLACE, "path"), "hidden_states"),
    (ROWS, (*PLACE, "path"), None),
    (ROWS, (*PLACE, "slot"), 5),
    (ROWS, (*PLACE, "slot"), -1),
    (ROWS, (*PLACE, "slot"), "0"),
    (ROWS, (*PLACE, "more"), 1),
]
"""File, place in it, and a value that stands there instead."""


@pytest.mark.parametrize(("name", "place", "value"), WRONG, ids=str)
def test_a_value_that_cannot_be_is_said_with_its_file(folder, name, place, value):
    change(folder, name, place, value)
    with pytest.raises(PruningError) as caught:
        read_all(folder)
    assert str(folder) in str(caught.value)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def filled(content: bytes) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        path.write_bytes(content)

    return fill


def gone(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN = {
    "cut short": cut_short,
    "empty": emptied,
    "no UTF-8": filled(b"\xff\xfe{}"),
    "a list": filled(b"[1]"),
    "a pickle": filled(b"\x80\x04\x95\x05\x00"),
    "nested": filled(b"[" * 200_000),
    "nested mappings": filled(b'{"a":' * 200_000),
    "missing": gone,
    "a folder": a_folder,
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", [HEAD, ROWS, TENSORS])
def test_a_broken_file_is_named(folder, name, how):
    BROKEN[how](folder / name)
    with pytest.raises(PruningError) as caught:
        read_all(folder)
    assert str(folder) in str(caught.value)
    if how != "missing":  # rows that are missing say that the recording is not finished
        assert name in str(caught.value)


Stored = dict[str, torch.Tensor]


def first(tensors: Stored, like: Callable[[torch.Tensor], bool]) -> str:
    return next(key for key in sorted(tensors) if like(tensors[key]))


def without_one(tensors: Stored) -> None:
    del tensors[first(tensors, lambda tensor: tensor.ndim == 3)]


def longer(tensors: Stored) -> None:
    key = first(tensors, lambda tensor: tensor.ndim == 3)
    tensors[key] = torch.cat([tensors[key], tensors[key]])


def halved(tensors: Stored) -> None:
    key = first(tensors, lambda tensor: tensor.ndim == 3)
    tensors[key] = tensors[key].half()


@pytest.mark.parametrize("edit", [without_one, longer, halved])
def test_a_tensor_that_is_not_what_its_row_says_is_refused(folder, edit):
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS)
    with pytest.raises(PruningError, match=r"record anew"):
        read_all(folder)


def test_what_is_there_of_a_recording_that_is_not_finished_can_be_shown(folder):
    change(folder, HEAD, ("samples",), 4)
    with pytest.raises(PruningError, match="not finished: 3 of 4 samples are there"):
        RecordedCalls.open(folder)
    assert describe(folder)["recorded"] == 3
    (folder / ROWS).unlink()
    nothing = describe(folder)
    assert (nothing["recorded"], nothing["rows"], nothing["timesteps"]) == (0, 0, None)
    assert nothing["denoisers"]["transformer"]["branches"] == []


def test_an_order_of_images_that_is_none_is_refused(tmp_path):
    tiny = PIPELINES["sd"]
    record(tiny.build(), tiny.inputs[:1], tmp_path, call=tiny.call, points=None, for_images=True)
    path = tmp_path / DECODING
    with safe_open(path, "pt") as file:
        said = file.metadata()
    tensors = load_file(path)
    for change_one in (
        lambda t: t["order"].zero_(),
        lambda t: t["order"].sub_(1),
        lambda t: t["scale"].fill_(float("nan")),
        lambda t: t["scale"].zero_(),
        lambda t: t["shift"].fill_(float("inf")),
        lambda t: t.update(scale=t["scale"][:-1].clone()),
        lambda t: t.pop("shift"),
    ):
        broken = copy.deepcopy(tensors)
        change_one(broken)
        save_file(broken, path, said)
        with pytest.raises(PruningError, match=r"decoding\.safetensors cannot be read"):
            RecordedCalls.open(tmp_path)
    facts = json.loads(said["decoding"])
    changes = (
        {"latent": [1, -1]},
        {"latent": [2**60], "decoded": [2**60]},
        {"autoencoder": 5},
        {"decoded": 3},
    )
    for wrong in ("", "[]", *(json.dumps({**facts, **one}) for one in changes)):
        save_file(tensors, path, {"decoding": wrong})
        with pytest.raises(PruningError, match=r"decoding\.safetensors cannot be read"):
            RecordedCalls.open(tmp_path)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a recording in three parts."""
    monkeypatch.setattr(sys.modules[record.__module__], "PART_SAMPLES", 1)
    again(tmp_path / "calls")
    return tmp_path / "calls"


def again(folder: Path, **call: Any) -> RecordedCalls:
    tiny = PIPELINES["flux"]
    return record(tiny.build(), tiny.inputs, folder, call={**tiny.call, **call}, points=1)


def named_part(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / f"rows-{index:05d}.json", folder / f"tensors-{index:05d}.safetensors"


def a_part_twice(folder: Path) -> None:
    for one, other in zip(named_part(folder, 0), named_part(folder, 1), strict=True):
        shutil.copy(one, other)


def parts_swapped(folder: Path) -> None:
    for one, other in zip(named_part(folder, 0), named_part(folder, 1), strict=True):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def one_part_more(folder: Path) -> None:
    for one, other in zip(named_part(folder, 2), named_part(folder, 3), strict=True):
        shutil.copy(one, other)


def a_part_gone(folder: Path) -> None:
    named_part(folder, 1)[0].unlink()


def a_row_twice(folder: Path) -> None:
    content = json.loads(named_part(folder, 2)[0].read_text())
    change(folder, "rows-00002.json", ("rows",), content["rows"] * 2)


def no_rows(folder: Path) -> None:
    change(folder, "rows-00002.json", ("rows",), [])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (a_part_twice, r"rows-00001\.json: ValueError: its samples are not those from 1 on"),
        (parts_swapped, r"rows-00000\.json: ValueError: its samples are not those from 0 on"),
        (one_part_more, r"rows-00003\.json: ValueError: its samples are not those from 3 on"),
        (a_part_gone, r"rows-00001\.json is missing, and rows-00002\.json is there"),
        (a_row_twice, "sample 2, .* it is there twice"),
        (no_rows, r"rows-00002\.json: ValueError: its rows are not those of its samples"),
    ],
)
def test_parts_that_do_not_follow_each_other_are_refused(parts, how, message):
    how(parts)
    with pytest.raises(PruningError, match=message):
        RecordedCalls.open(parts)
    with pytest.raises(PruningError, match=message):
        again(parts)


def test_parts_of_another_recording_are_not_taken_for_ones_own(parts):
    (parts / HEAD).unlink()
    with pytest.raises(PruningError, match=r"rows-00000\.json, whose recording\.json is gone"):
        again(parts, guidance_scale=1.5)


def test_what_is_broken_is_said_before_a_recording_goes_on(parts, monkeypatch):
    named_part(parts, 2)[0].unlink()
    cut_short(named_part(parts, 0)[1])
    monkeypatch.setattr("pruning.recording.runs.run_once", None)
    with pytest.raises(PruningError, match=r"tensors-00000\.safetensors cannot be read"):
        again(parts)


def test_a_recording_is_made_by_one_process_at_a_time(tmp_path):
    folder = tmp_path / "calls"
    folder.mkdir()
    with locked(folder / LOCK, "", ""), pytest.raises(PruningError, match="calls is in use by process"):
        again(folder)
    assert again(folder).recorded == 3
    assert not (folder / LOCK).exists()


@pytest.mark.parametrize("value", [float("nan"), 2.0])
def test_a_value_that_was_changed_is_found_when_it_is_read(folder, value):
    stored = load_file(folder / TENSORS)
    stored[first(stored, lambda tensor: tensor.ndim == 3)].view(-1)[0] = value
    save_file(stored, folder / TENSORS)
    with pytest.raises(PruningError, match=r"tensors-00000\.safetensors: the tensor '\w+' was changed"):
        read_all(folder)


def test_a_target_that_is_not_in_the_answers_is_said(folder):
    change(folder, HEAD, (*MAP, "place", "axis"), 1)
    change(folder, HEAD, (*MAP, "place", "size"), 10**15)
    batch = next(iter(recorded_batches(RecordedCalls.open(folder), source="x0", timestep_buckets=1)))
    assert batch.read is not None
    with pytest.raises(PruningError, match="the answer has no place for its target"):
        batch.read((torch.zeros(len(batch.sample_ids), 96, 8),))


class Full:
    """A disk without room."""

    free = 10


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inputs": []}, "inputs is empty"),
    ({"inputs": ["a dog"]}, r"inputs\[0\] is 'a dog'; expected a mapping"),
    ({"inputs": [{"prompt": "a"}, {"promt": "a"}]}, r"inputs\[1\]: FluxPipeline takes no 'promt'"),
    ({"inputs": [{"generator": None}]}, "'generator' is what recording gives itself"),
    ({"call": {"output_type": "pil"}}, "'output_type' is what recording gives itself"),
    ({"call": {"steps": 4}}, "call: FluxPipeline takes no 'steps'"),
    ({"points": 0}, "points is 0; it must be at least 1"),
    ({"points": -1}, "points is -1"),
    ({"points": 1.5}, "points is 1.5"),
    ({"points": True}, "points is True"),
    ({"seed": "a"}, "seed is 'a'; it must be a whole number"),
    ({"seed": None}, "seed is None"),
    ({"pipeline": None}, "None is no pipeline of diffusers"),
    ({"pipeline": DiffusionPipeline}, "is no pipeline of diffusers"),
    ({"inputs": {"prompt": "a"}}, r"inputs is \{'prompt': 'a'\}; expected a list with a mapping for each"),
    ({"inputs": 3}, "inputs is 3"),
    ({"call": "abc"}, "call is 'abc'; expected a mapping"),
    ({"call": {1: 2}}, "call: 1 is no name of an argument"),
]


@pytest.mark.parametrize(("how", "message"), BAD, ids=str)
def test_what_cannot_be_recorded_is_said_and_nothing_is_written(tmp_path, how, message):
    tiny = PIPELINES["flux"]
    how = {"pipeline": tiny.build(), "inputs": tiny.inputs, "call": tiny.call, **how}
    with pytest.raises(PruningError, match=message):
        record(how.pop("pipeline"), how.pop("inputs"), tmp_path / "calls", **how)
    assert not (tmp_path / "calls").exists()


def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    tiny = PIPELINES["flux"]
    asked = {"call": tiny.call, "points": 1}
    (tmp_path / "file").write_text("x")
    with pytest.raises(PruningError, match=r"cannot write the recording in .*file"):
        record(tiny.build(), tiny.inputs, tmp_path / "file", **asked)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Full)
    with pytest.raises(PruningError, match=r"cannot write the recording .*are needed and 10 B are free"):
        record(tiny.build(), tiny.inputs, tmp_path / "full", **asked)
    assert not (tmp_path / "full" / HEAD).exists()


@pytest.mark.parametrize("folder", ["", "  ", None, 3])
def test_a_folder_that_is_none_is_refused(folder):
    with pytest.raises(PruningError, match="name a folder"):
        again(folder)


def test_a_folder_that_is_a_file_is_said_before_the_pipeline_runs(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("pruning.recording.runs.run_once", None)
    with pytest.raises(PruningError, match=r"cannot write the recording in .*file"):
        again(tmp_path / "file")


def test_a_disk_that_is_full_at_once_leaves_no_head(tmp_path, monkeypatch):
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pruning.recording.writing.write_json", full)
    with pytest.raises(PruningError, match=r"the disk is full.* Nothing was recorded"):
        again(tmp_path / "calls")
    assert not (tmp_path / "calls").exists()


def test_a_disk_that_fills_up_leaves_what_was_recorded(tmp_path, monkeypatch):
    tiny, write = PIPELINES["flux"], Tensors.write
    how = {"call": tiny.call, "points": 1}
    monkeypatch.setattr(sys.modules[record.__module__], "PART_SAMPLES", 1)

    def full(self: Tensors, path: Path) -> None:
        if "00001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path)

    monkeypatch.setattr(Tensors, "write", full)
    with pytest.raises(PruningError, match=r"the disk is full.* The samples that were recorded are kept"):
        record(tiny.build(), tiny.inputs, tmp_path, **how)
    assert describe(tmp_path)["recorded"] == 1
    monkeypatch.setattr(Tensors, "write", write)
    assert record(tiny.build(), tiny.inputs, tmp_path, **how).recorded == 3


def test_samples_that_are_asked_with_different_arguments_are_recorded_each_by_its_own(tmp_path):
    tiny = PIPELINES["flux"]
    inputs = [{"prompt": "a dog"}, {"prompt": "a cat", "prompt_2": "on a mat"}]
    calls = record(tiny.build(), inputs, tmp_path, call=tiny.call, points=1)
    assert [row.sample for row in calls.rows] == [0, 1]
    assert calls.signature(calls.rows[0]) == calls.signature(calls.rows[1])
