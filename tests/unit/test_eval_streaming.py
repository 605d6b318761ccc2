"""Observations that are written as they are made and read by rows: many samples in the memory of few."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eval import cmmd, denoising, fid, kid, mmd, pairs, precision_recall
from eval.cost import LiveBytes
from eval.features import load_features
from eval.observation import Observation, Rows, filled, parts_of
from eval.run import look, measure_all, observations
from eval.types import DATA, Context, Noised, Subject

METRICS = ["fid", "kid", "precision_recall", "pairs", "denoising"]
REAL = torch.arange(300).split(50)


class Means(nn.Module):
    """Means of the 16 by 16 patches of an image: 12 features."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def sample(ids: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + int(ids[0]))
    return torch.randint(seed, 256, (len(ids), 3, 32, 32), dtype=torch.uint8, generator=generator)


def noised(count: int) -> Iterator[Noised]:
    for ids in torch.arange(count).split(50):
        images = sample(ids, 5).float() / 255
        yield Noised({"sample": images}, images, int(ids[0]) % 100 // 50, ids)


def context(count: int) -> Context:
    return Context(
        {
            "dense": Subject(lambda call: call["sample"] + 1, sample),
            "pruned": Subject(lambda call: call["sample"] * 2, lambda ids: sample(ids, 20)),
        },
        real=lambda: Rows([50] * 6, lambda numbers: (sample(REAL[number], 3) for number in numbers)),
        noised=lambda: noised(count),
        features=lambda: load_features(Means()),
        num_samples=count,
        batch_size=50,
    )


def evaluated(count: int, folder: Path | None, metrics: list[str] = METRICS) -> dict:
    """Look at everything and compute all metrics, by way of files in `folder` if it is given."""
    ctx = context(count)
    seen: dict[str, dict[str, Observation]] = {}
    for name in (DATA, *ctx.subjects):
        seen[name] = {}
        if folder is not None:
            (folder / name).mkdir(parents=True)
        for what in observations(metrics, name):
            seen[name][what] = look(ctx, name, what, seen[name], folder and folder / name)
    return measure_all(ctx, metrics, seen=seen)


class Held(LiveBytes):
    """Leaves out storages that safetensors maps from a file, which is what ``set_`` brings in here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.set_.source_Storage:
            found = func(*args, **(kwargs or {}))
            self._known.add(found.untyped_storage())
            return found
        return super().__torch_dispatch__(func, types, args, kwargs)


def peak(count: int, folder: Path | None) -> int:
    with Held() as live:
        evaluated(count, folder)
    return live.peak


def test_many_samples_take_the_memory_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (fid, "CHUNK"),
        (mmd, "ROWS"),
        (mmd, "PARTNERS"),
        (mmd, "QUADRATIC"),
        (cmmd, "ROWS"),
    ):
        monkeypatch.setattr(module, name, 200)
    monkeypatch.setattr(precision_recall, "CELLS", 1 << 16)
    monkeypatch.setattr(fid, "WIDE", 0)  # fewer resamples
    monkeypatch.setattr(kid, "SUBSETS", 3)
    monkeypatch.setattr(kid, "SUBSET_SIZE", 100)
    for module in (pairs, denoising):
        monkeypatch.setattr(module, "ROWS", 50)
    few, many, held = (
        peak(n, folder) for n, folder in ((250, tmp_path / "few"), (1200, tmp_path / "many"), (1200, None))
    )
    images = 1200 * 3 * 32 * 32
    assert held > 2 * images  # both subjects' samples
    # What grows are numbers by sample: indices of a resample, distances to the reference, reaches.
    assert many - few < 1200 * 200 < images / 10
    assert (tmp_path / "many" / "dense" / "samples.safetensors").stat().st_size > images


def test_files_and_memory_give_the_same_figures(tmp_path: Path) -> None:
    metrics = [*METRICS, "consistency"]
    assert evaluated(60, tmp_path, metrics) == evaluated(60, None, metrics)


def given(batches: list[Tensor], sizes: list[int]) -> Rows:
    return Rows(sizes, lambda numbers: [batches[number] for number in numbers])


def test_rows_are_written_as_safetensors_would(tmp_path: Path) -> None:
    tensors = {
        "bytes": given(
            [torch.arange(6, dtype=torch.uint8).view(3, 2), torch.ones(2, 2, dtype=torch.uint8)], [3, 2]
        ),
        "numbers": torch.randn(4, 3, dtype=torch.float64),
        "whole": torch.arange(3),
        "half": torch.ones(1, 1, dtype=torch.bfloat16),
        "one": torch.tensor(2.5),
        "none": torch.empty(0, 4),
    }
    Observation(tensors, {"a": 1}).save(tmp_path, "x")
    found = load_file(tmp_path / "x.safetensors")
    assert found["bytes"].tolist() == [[0, 1], [2, 3], [4, 5], [1, 1], [1, 1]]
    for name in ("numbers", "whole", "half", "one", "none"):
        assert torch.equal(found[name], tensors[name])
        assert found[name].dtype == tensors[name].dtype
    assert Observation.load(tmp_path, "x").facts == {"a": 1}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.zeros(2, 3), torch.zeros(3, 3)], "rows 2 and following: 3 came, 2 were to come"),
        (
            [torch.zeros(2, 3), torch.zeros(2, 4)],
            r"rows 2 and following are torch.float32 \(4,\), the ones before",
        ),
        ([torch.zeros(2, 3), torch.zeros(2, 3).double()], r"rows 2 and following are torch.float64 \(3,\)"),
    ],
)
def test_rows_that_do_not_fit(batches: list[Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        given(batches, [2, 2]).held()
    with pytest.raises(ValueError, match=message):
        Observation({"x": given(batches, [2, 2])}).save(tmp_path, "x")
    assert not (tmp_path / "x.json").exists()  # which says that an observation is whole


def test_some_batches_can_be_made_without_the_others() -> None:
    rows = given([torch.full((2, 1), float(k)) for k in range(4)], [2] * 4)
    assert [float(batch[0]) for batch in rows.some([1, 3])] == [1, 3]
    assert rows.held().flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rows.total == 8
    assert parts_of(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]


@pytest.mark.parametrize("other", [torch.zeros(2, 4), torch.zeros(2, 3).double(), torch.zeros(1, 3)])
def test_columns_come_with_as_many_rows_of_one_kind(other: Tensor, tmp_path: Path) -> None:
    parts = [{"n": torch.arange(2), "x": torch.ones(2, 3)}, {"n": torch.arange(2), "x": other}]
    with pytest.raises(ValueError, match=r"x is torch.float.* in batch 1; it must be torch.float32 \(2, 3\)"):
        Observation(columns=parts).save(tmp_path, "o")
    with pytest.raises(ValueError, match=r"batch 1 has the columns \['n'\], the ones before \['n', 'x'\]"):
        Observation(columns=[parts[0], {"n": torch.arange(2)}]).save(tmp_path, "o")
    assert not list(tmp_path.glob("o*"))


def test_columns_are_written_as_they_come_and_held_alike(tmp_path: Path) -> None:
    parts = [{"n": torch.arange(k), "x": torch.full((k, 2, 2), float(k)).half()} for k in (3, 1, 2)]
    found = Observation({"whole": torch.ones(2)}, {"a": 1}, iter(parts))
    found.save(tmp_path, "o")
    held, read = Observation(columns=parts).held(), Observation.load(tmp_path, "o")
    assert read.tensors.keys() == {"whole", "n", "x"}
    assert held.tensors["n"].tolist() == [0, 1, 2, 0, 0, 1]
    for name, tensor in held.tensors.items():
        assert torch.equal(read.tensors[name], tensor)
        assert read.tensors[name].dtype == tensor.dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.json", "o.safetensors"]


def test_values_come_in_parts() -> None:
    assert filled(5, iter([torch.ones(2), torch.full((3,), 2.0)])).tolist() == [1, 1, 2, 2, 2]
    with pytest.raises(AssertionError):
        filled(5, [torch.ones(2)])


def own_memory() -> int:
    """Return the bytes of this process's own memory, pages of files left out."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s*(\d+) kB", status)[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads what Linux says of a process")
def test_the_heap_keeps_no_holes_between_what_is_kept_by_sample() -> None:
    images = torch.randint(256, (20_000, 3, 16, 16), dtype=torch.uint8)
    pairs.pair_errors(images[:500], images[:500])
    before = own_memory()
    pairs.pair_errors(images, images)
    assert own_memory() - before < 30e6  # 200 MB where sums are kept one by one
