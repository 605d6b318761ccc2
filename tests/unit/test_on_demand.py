"""Tensors that are read each time they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.on_demand import OnDemand, first_of, stored_at


def test_nothing_is_read_until_asked_and_nothing_is_held(tmp_path: Path) -> None:
    path, name = tmp_path / "a.safetensors", "in the file"
    save_file({name: torch.ones(2)}, path)
    places = {"x": (path, name)}
    found = OnDemand(places, stored_at)
    assert list(found) == ["x"]
    assert len(found) == 1
    assert found["x"].tolist() == [1, 1]
    save_file({name: torch.zeros(2)}, path)
    assert found["x"].tolist() == [0, 0]
    path.unlink()
    assert "x" in found
    assert "y" not in found
    with pytest.raises(KeyError):
        found["y"]
    places["y"] = path, "another"
    assert "y" in found


def test_of_one_name_the_first_counts() -> None:
    def read(place: str) -> torch.Tensor:
        raise AssertionError(f"{place} is read")

    found = first_of({"a": torch.ones(1)}, {"b": torch.ones(1) * 2}, OnDemand({"a": "a", "c": "c"}, read))
    assert {*found} == {"a", "b", "c"}
    assert float(found["a"]) == 1
    assert float(found["b"]) == 2
    assert not first_of()
