"""Statistics on disk and as weightings see them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pruning.calibration import load_stats, save_stats, view
from pruning.errors import PruningError
from pruning.files import write_json
from pruning.types import CalibrationStats


def stats() -> CalibrationStats:
    def one(value: float) -> torch.Tensor:
        return torch.tensor([value]).double()

    return CalibrationStats(
        {
            "a.attn1.to_out.0": {"input_sq": one(1), "input_sq@on": one(2), "samples": one(3)},
            "b.conv2": {"input_sq": one(4)},
        },
        {"variants": ["on"], "seed": 3, "sink_weights": {"rho": None}},
    )


def test_round_trip(tmp_path: Path) -> None:
    ours = stats()
    moment = torch.randn(3, 3).double().T  # not contiguous
    ours.values["b.conv2"] = {**ours.values["b.conv2"], "input_moment": moment}
    save_stats(ours, tmp_path / "deep" / "stats")
    theirs = load_stats(tmp_path / "deep" / "stats")
    assert theirs.meta == ours.meta
    assert {g: set(v) for g, v in theirs.values.items()} == {g: set(v) for g, v in ours.values.items()}
    assert all(torch.equal(v, theirs.get(g, n)) for g, found in ours.values.items() for n, v in found.items())
    assert os.listdir(tmp_path / "deep") == ["stats"]


def test_equal_statistics_are_equal_bytes(tmp_path: Path) -> None:
    """Safetensors keeps meta data in a hash map: with several entries every write had another order."""
    ours = stats()
    backwards = CalibrationStats(
        {group: dict(reversed(found.items())) for group, found in reversed(ours.values.items())},
        dict(reversed(ours.meta.items())),
    )
    for number in range(12):
        save_stats(ours if number % 2 else backwards, tmp_path / str(number))
    for name in ("stats.json", "part-000.safetensors"):
        assert len({(path / name).read_bytes() for path in tmp_path.iterdir()}) == 1, name


def test_views() -> None:
    on = view(stats(), "on")
    assert float(on.get("a.attn1.to_out.0", "input_sq")) == 2
    assert float(on.get("a.attn1.to_out.0", "samples")) == 3
    assert float(on.get("b.conv2", "input_sq")) == 4  # no variant: all rows weigh the same
    off = view(stats(), "off")
    assert float(off.get("a.attn1.to_out.0", "input_sq")) == 1
    assert not any("@" in name for seen in (on, off) for found in seen.values.values() for name in found)


def test_views_that_are_not_there() -> None:
    with pytest.raises(PruningError, match="unknown weighting 'half'; valid: off, on, permuted"):
        view(stats(), "half")
    with pytest.raises(PruningError, match=r"weighting 'permuted' was not calibrated \(there is: off, on\)"):
        view(stats(), "permuted")


def test_a_large_place_is_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.calibration.store.SMALL", 8)
    save_stats(stats(), tmp_path / "stats")
    theirs, ours = load_stats(tmp_path / "stats"), stats()
    large = tmp_path / "stats" / "a.attn1.to_out.0.safetensors"
    assert large.is_file()
    assert float(theirs.get("a.attn1.to_out.0", "input_sq@on")) == 2
    assert torch.equal(theirs.get("a.attn1.to_out.0", "samples"), ours.get("a.attn1.to_out.0", "samples"))
    large.unlink()
    with pytest.raises(
        PruningError, match=r"cannot read calibration statistics from .*to_out\.0\.safetensors"
    ):
        theirs.get("a.attn1.to_out.0", "samples")


def test_views_read_nothing_until_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.calibration.store.SMALL", 8)
    save_stats(stats(), tmp_path / "stats")
    theirs = load_stats(tmp_path / "stats")
    (tmp_path / "stats" / "a.attn1.to_out.0.safetensors").unlink()
    seen = view(theirs, "on")
    assert seen.has("a.attn1.to_out.0", "input_sq")
    assert float(seen.get("b.conv2", "input_sq")) == 4


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match=r"from .*none: stats\.json is missing; calibrate again"):
        load_stats(tmp_path / "none")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "stats.json").write_text("{")
    with pytest.raises(PruningError, match=r"stats\.json: cannot be read as JSON .*; calibrate again"):
        load_stats(tmp_path / "torn")
    save_stats(stats(), tmp_path / "cut")
    (tmp_path / "cut" / "part-000.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(PruningError, match="calibrate again"):
        load_stats(tmp_path / "cut")
    write_json(tmp_path / "torn" / "stats.json", {"format": "other", "content": "something else"})
    with pytest.raises(PruningError, match=r"holds 'something else' .* expected 'calibration statistics'"):
        load_stats(tmp_path / "torn")


def test_a_failed_write_leaves_the_earlier_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stats"
    save_stats(stats(), path)

    def full_disk(tensors: object, name: str, header: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pruning.calibration.tensors.save_file", full_disk)
    with pytest.raises(PruningError, match=r"cannot write calibration statistics in .*the disk is full"):
        save_stats(CalibrationStats(), path)
    assert os.listdir(tmp_path) == ["stats"]
    assert load_stats(path).meta == stats().meta


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PruningError, match="choose another folder"):
        save_stats(stats(), tmp_path / "file" / "stats")


def test_places_with_long_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning.calibration.store.SMALL", 8)
    names = [f"{'down_blocks.0/ü.' * 30}to_out.{k}[0:64]" for k in range(2)] + [".", "..", "a|b", "part-000"]
    values = {name: {"input_sq": torch.tensor([1.0, 2.0, float(k)])} for k, name in enumerate(names)}
    save_stats(CalibrationStats({place: dict(found) for place, found in values.items()}), tmp_path / "stats")
    theirs = load_stats(tmp_path / "stats")
    for name, found in values.items():
        assert torch.equal(theirs.get(name, "input_sq"), found["input_sq"]), name


def test_an_index_that_lacks_something(tmp_path: Path) -> None:
    save_stats(stats(), tmp_path / "stats")
    index = json.loads((tmp_path / "stats" / "stats.json").read_text())
    del index["parts"]
    write_json(tmp_path / "stats" / "stats.json", index)
    with pytest.raises(PruningError, match=r"stats\.json lacks 'parts'; calibrate again"):
        load_stats(tmp_path / "stats")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(
        PruningError, match=r"cannot be kept in .*: it holds 'config.json', which is no part of them"
    ):
        save_stats(stats(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "weights.safetensors"]
