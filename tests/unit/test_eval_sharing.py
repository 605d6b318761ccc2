"""Observations that processes make together: each batch once, the same for any number of them, none made twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eval import sharing
from eval.features import load_features
from eval.observation import Observation, Rows
from eval.run import help_to_look, look
from eval.sharing import BatchFiles, batch_files
from eval.types import Context, Subject

COUNT, BATCH = 23, 4
Sample = Callable[[Tensor], Tensor]


class Mixes(nn.Module):
    """Features that depend, in the last bits, on how many images are in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() @ self.weight


class Counted:
    """A sample function that notes the ids it is asked for, and may die at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.dies_at = dies_at

    def __call__(self, ids: Tensor) -> Tensor:
        if self.dies_at in ids.tolist():
            raise KeyboardInterrupt
        self.asked += ids.tolist()
        draws = [torch.Generator().manual_seed(int(i)) for i in ids]
        return torch.stack([torch.randint(256, (3, 4, 4), dtype=torch.uint8, generator=g) for g in draws])


def context(sample: Sample, batch_size: int = BATCH) -> Context:
    return Context(
        {"dense": Subject(sample=sample)},
        features=lambda: load_features(Mixes()),
        num_samples=COUNT,
        batch_size=batch_size,
    )


def samples_of(folder: Path, sample: Sample, batch_size: int = BATCH) -> Tensor:
    folder.mkdir(exist_ok=True)
    found = look(
        context(sample, batch_size), "dense", "samples", {}, folder, batches=folder / ".scratch" / "samples"
    )
    return found.tensors["samples"]


def test_what_was_made_before_a_kill_is_not_made_again(tmp_path: Path) -> None:
    expected = look(context(Counted()), "dense", "samples", {}).tensors["samples"]
    with pytest.raises(KeyboardInterrupt):
        samples_of(tmp_path, Counted(dies_at=13))
    again = Counted()
    assert torch.equal(samples_of(tmp_path, again), expected)
    assert again.asked == list(range(12, COUNT))
    third = Counted()
    assert torch.equal(samples_of(tmp_path, third), expected)
    assert third.asked == []


def test_a_batch_that_cannot_be_read_is_made_again(tmp_path: Path) -> None:
    expected = samples_of(tmp_path, Counted())
    path = tmp_path / ".scratch/samples/00000008-00000012.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    again = Counted()
    assert torch.equal(samples_of(tmp_path, again), expected)
    assert again.asked == [8, 9, 10, 11]


def test_batches_of_another_size_are_not_mixed_in(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        samples_of(tmp_path, Counted(dies_at=13))
    again = Counted()
    found = samples_of(tmp_path, again, batch_size=5)
    assert again.asked == list(range(COUNT))
    assert torch.equal(found, look(context(Counted()), "dense", "samples", {}).tensors["samples"])


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_samples_and_features_are_equal_for_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(sharing, "POLL_SECONDS", 0.001)
    seen: dict[str, Observation] = {}
    for what in ("samples", "image_features"):
        batches, asked = tmp_path / ".scratch" / what, [Counted() for _ in range(processes)]
        helpers: list[threading.Thread] = []

        def share(missing: list[int], what: str = what, batches: Path = batches) -> Sequence[int]:
            for rank in range(1, processes):
                ctx, mine = context(asked[rank]), missing[rank::processes]  # noqa: B023
                helper = threading.Thread(
                    target=help_to_look,
                    args=(ctx, "dense", what, seen),
                    kwargs={"batches": batches, "numbers": mine},
                )
                helper.start()
                helpers.append(helper)  # noqa: B023
            return missing[::processes]

        seen[what] = look(context(asked[0]), "dense", what, seen, tmp_path, batches=batches, share=share)
        for helper in helpers:
            helper.join()
        if what == "samples":
            assert sorted(i for each in asked for i in each.asked) == list(range(COUNT))
            assert all(each.asked for each in asked[: COUNT // BATCH])
    alone: dict[str, Observation] = {}
    for what in seen:
        alone[what] = look(context(Counted()), "dense", what, alone)
        for name, tensor in alone[what].tensors.items():
            assert torch.equal(seen[what].tensors[name], tensor), what


def test_files_are_of_one_tensor(tmp_path: Path) -> None:
    rows = Rows([1], lambda numbers: (torch.zeros(1) for _ in numbers))
    found = batch_files(Observation({"rows": rows, "held": torch.ones(2)}), tmp_path)
    assert found == {"rows": BatchFiles(rows, tmp_path)}
    with pytest.raises(AssertionError):
        batch_files(Observation({"a": rows, "b": rows}), tmp_path)
