"""Recordings that somebody broke, or that cannot be written: one error, which names the file and what is wrong."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning.errors import PruningError
from pruning.recording import RecordedCalls, record, recorded_batches
from pruning.recording.decoding import DECODING, Decoding
from pruning.recording.describing import describe
from tests.pipelines import PIPELINES

HEAD, ROWS, TENSORS = "recording.json", "rows-00000.json", "tensors-00000.safetensors"
SIZES = {"batch_size": 4, "timestep_buckets": 2}


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
    (HEAD, (*DENOISER, "outputs"), [[[5], 0]]),
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
    (HEAD, (*MAP, "place", "path"), [7]),
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
