"""Calibration in rounds: the outcome is that of one round, whatever the memory."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pruning
from pruning.calibration import STATISTICS, calibrate, load_stats
from pruning.calibration import passes as passes_module
from pruning.calibration import rounds as rounds_module
from pruning.calibration.rounds import Rounds, plan_rounds, split
from pruning.data.batches import NoisedBatches
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.settings import Calibrate
from pruning.store.locks import locked
from pruning.types import CalibrationStats, PrunableGroup
from tests.models import MODELS
from tests.unit.calibration_setup import noised

VARIANTS = ("on", "influence")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> Callable[..., Any]:
    model = MODELS["unet2d-condition"]()
    groups = find_groups(model)

    def run(**options: Any) -> CalibrationStats:
        options = {"needs": list(STATISTICS), "variants": VARIANTS, **options}
        return calibrate(model, groups, options.pop("source", noised(model)), **options)

    run.model, run.groups = model, groups  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="module")
def whole(measured: Callable[..., Any]) -> CalibrationStats:
    return measured()


def in_rounds(monkeypatch: pytest.MonkeyPatch, count: int) -> list[Rounds]:
    """Let every calibration take so many rounds; returns those that were planned."""
    planned: list[Rounds] = []

    def plan(groups: Sequence[PrunableGroup], *args: object, **options: object) -> Rounds:
        size = -(-len(groups) // count)
        planned.append(
            Rounds(tuple(tuple(groups[k : k + size]) for k in range(0, len(groups), size)), 1, None, 1.0)
        )
        return planned[-1]

    monkeypatch.setattr(passes_module, "plan_rounds", plan)
    return planned


def assert_same(ours: CalibrationStats, theirs: CalibrationStats) -> None:
    assert ours.meta == theirs.meta
    assert {place: set(found) for place, found in ours.values.items()} == {
        place: set(found) for place, found in theirs.values.items()
    }
    for place, found in ours.values.items():
        for name in found:
            scale = float(theirs.get(place, name).abs().max())
            torch.testing.assert_close(
                found[name], theirs.get(place, name), rtol=1e-6, atol=1e-6 * scale, msg=f"{place} {name}"
            )


@pytest.mark.parametrize("count", [2, 7])
def test_rounds_change_nothing(
    count: int, measured: Callable[..., Any], whole: CalibrationStats, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_rounds(monkeypatch, count)
    told: list[Rounds] = []
    assert_same(measured(announce=told.append), whole)
    assert [len(rounds.groups) for rounds in told] == [
        -(-len(measured.groups) // -(-len(measured.groups) // count))
    ]  # type: ignore[attr-defined]


def test_a_round_may_hold_blocks_alone(measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for gradients in it, though other rounds do."""
    blocks = [group for group in measured.groups if group.kind == "blocks"][:2]  # type: ignore[attr-defined]
    others = [group for group in measured.groups if group.kind != "blocks"][:2]  # type: ignore[attr-defined]
    model: nn.Module = measured.model  # type: ignore[attr-defined]
    needs = ["taylor", "probe_diag", "output_sensitivity", "diff_pruning", "block_change"]
    whole = calibrate(model, [*others, *blocks], noised(model), needs=needs)
    in_rounds(monkeypatch, 2)
    assert_same(calibrate(model, [*others, *blocks], noised(model), needs=needs), whole)


def test_statistics_on_disk_are_those_in_memory(
    measured: Callable[..., Any], whole: CalibrationStats, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_rounds(monkeypatch, 3)
    monkeypatch.setattr("pruning.calibration.store.SMALL", 4096)
    found = measured(folder=tmp_path / "stats")
    assert_same(found, whole)
    assert_same(load_stats(tmp_path / "stats"), whole)
    names = {path.name for path in (tmp_path / "stats").iterdir()}
    assert {"stats.json", "part-000.safetensors", "part-002.safetensors"} < names
    assert any(name.startswith("down_blocks") for name in names), "no place had a file of its own"


def test_a_killed_calibration_goes_on(
    measured: Callable[..., Any], whole: CalibrationStats, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two of three rounds are done: 12 batches of four rows are shown, and half of the third's 4."""
    planned, rows = in_rounds(monkeypatch, 3), [0]

    def kill(seen: int) -> None:
        rows[0] += seen
        if rows[0] == stop:
            raise KeyboardInterrupt

    first = passes_module.first_pass(
        measured.model,  # type: ignore[attr-defined]
        measured.groups,  # type: ignore[attr-defined]
        noised(measured.model),  # type: ignore[attr-defined]
    )
    planned.clear()
    stop = 2 * 16 + 8
    with pytest.raises(KeyboardInterrupt):
        measured(folder=tmp_path / "stats", first_pass=first, progress=kill)
    with pytest.raises(PruningError, match=r"stats\.json is missing; calibrate again"):
        load_stats(tmp_path / "stats")
    stop, rows[0] = -1, 0
    found = measured(folder=tmp_path / "stats", first_pass=first, progress=kill)
    assert_same(found, whole)
    left = [group for part in planned[1].groups for group in part]
    assert left == list(planned[0].groups[2])
    neutral = Calibrate(
        timestep_buckets=noised(measured.model).timestep_buckets,  # type: ignore[attr-defined]
        checkpointing=True,
        memory_gb=1e3,
    )
    for settings in (None, neutral):  # all is there
        again = measured(folder=tmp_path / "stats", first_pass=first, progress=pytest.fail, settings=settings)
        assert_same(again, whole)
    with pytest.raises(PruningError, match=r"stats holds statistics of another calibration \(seed"):
        measured(folder=tmp_path / "stats", first_pass=first, seed=3)


def test_the_price_of_rounds(measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A first pass, and one pass forwards and one backwards each round."""
    in_rounds(monkeypatch, 4)
    forwards, backwards = [0], [0]
    model: nn.Module = measured.model  # type: ignore[attr-defined]
    original = passes_module.Calibrator

    class Counting(original):  # type: ignore[misc,valid-type]
        def __enter__(self) -> CalibrationStats:
            stats = super().__enter__()
            told = self.driver.gradients.backward

            def backward(*args: Any) -> None:
                backwards[0] += 1
                told(*args)

            self.driver.gradients.backward = backward  # type: ignore[method-assign]
            return stats

    monkeypatch.setattr(passes_module, "Calibrator", Counting)
    handle = model.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    try:
        measured(needs=["probe_diag", "input_moment", "output_sensitivity"], variants=())
    finally:
        handle.remove()
    assert forwards[0] <= (2 + 4) * 4
    assert backwards[0] <= 4 * 4


def test_what_is_in_the_folder_of_another_model_or_other_inputs_is_refused(
    measured: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"needs": ["input_sq"], "variants": (), "folder": tmp_path / "stats"}
    measured(**options)
    model: nn.Module = measured.model  # type: ignore[attr-defined]
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(PruningError, match=r"statistics of another calibration \(model was"):
        calibrate(other, measured.groups, noised(model), needs=["input_sq"], folder=tmp_path / "stats")  # type: ignore[attr-defined]
    batches = [dataclasses.replace(b, call={**b.call, "sample": -b.call["sample"]}) for b in noised(model)]
    source = dataclasses.replace(noised(model), make=lambda: batches)
    with pytest.raises(PruningError, match=r"statistics of another calibration \(shown was"):
        measured(source=source, **options)
    with pytest.raises(PruningError, match=r"statistics of another calibration \(conditional was 1, is 0\)"):
        measured(conditional=0, **options)


def test_a_folder_is_for_one_process(measured: Callable[..., Any], tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".stats.lock", "", ""),
        pytest.raises(PruningError, match=r"stats is in use by process"),
    ):
        measured(needs=["input_sq"], variants=(), folder=tmp_path / "stats")
    measured(needs=["input_sq"], variants=(), folder=tmp_path / "stats")
    assert [path.name for path in tmp_path.iterdir()] == ["stats"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])])
def test_a_part_that_is_lost_is_measured_again(
    harm: Callable[[Path], object],
    measured: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    in_rounds(monkeypatch, 3)
    monkeypatch.setattr("pruning.calibration.store.SMALL", 4096)
    options: dict[str, Any] = {
        "needs": ["input_sq", "input_moment"],
        "variants": (),
        "folder": tmp_path / "stats",
    }
    whole = measured(**{**options, "folder": None})
    measured(**options)
    harm(tmp_path / "stats" / "part-001.safetensors")
    assert_same(measured(**options), whole)
    harm(next((tmp_path / "stats").glob("down_blocks*")))
    assert_same(measured(**options), whole)


def test_memory_is_that_of_where_the_inputs_lie(
    measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are copied to a device while they are read lie elsewhere. No batch is made to know it."""
    devices: list[torch.device] = []

    def plan(groups: Sequence[PrunableGroup], *args: object, **options: Any) -> Rounds:
        devices.append(options["device"])
        raise KeyboardInterrupt

    monkeypatch.setattr(passes_module, "plan_rounds", plan)
    for device in (torch.device("meta"), None):
        source = dataclasses.replace(noised(measured.model), make=pytest.fail, device=device)  # type: ignore[attr-defined]
        with pytest.raises(KeyboardInterrupt):
            measured(needs=["input_sq"], variants=(), source=source)
    assert devices == [torch.device("meta"), CPU]


def test_minutes_of_the_first_pass_are_those_of_one_round(
    measured: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_rounds(monkeypatch, 4)
    told: list[Rounds] = []
    model: nn.Module = measured.model  # type: ignore[attr-defined]
    passes_module.first_pass(model, measured.groups, noised(model), announce=told.append)  # type: ignore[attr-defined]
    assert [(len(rounds.groups), rounds.seconds) for rounds in told] == [(1, 0.25)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("8", r"memory_gb: '8' is a str; expected"),
        (float("nan"), r"memory_gb: nan must be a finite number"),
        (0.0, r"memory_gb: 0.0 is not in \(0, 1e6\]"),
        (-1.0, r"memory_gb: -1.0 is not in \(0, 1e6\]"),
    ],
)
def test_memory_that_is_none(value: Any, message: str, measured: Callable[..., Any]) -> None:
    settings = Calibrate(timestep_buckets=4, memory_gb=value)
    with pytest.raises(PruningError, match=message):
        pruning.calibrate(
            measured.model,  # type: ignore[attr-defined]
            measured.groups,  # type: ignore[attr-defined]
            noised(measured.model),  # type: ignore[attr-defined]
            for_="energy",
            settings=settings,
        )


# Planning.


def group_of(name: str) -> Any:
    return type("Group", (), {"name": name})()


def test_rounds_are_neighbours_that_fit_and_as_few_as_can_be() -> None:
    sizes = {"a": 5, "b": 3, "c": 3, "d": 9, "e": 1, "f": 1, "g": 2}
    groups = [group_of(name) for name in sizes]
    found = split(groups, lambda group: sizes[group.name], 9)
    assert [[group.name for group in part] for part in found] == [["a", "b"], ["c"], ["d"], ["e", "f", "g"]]
    assert split(groups, lambda group: sizes[group.name], 24) == (tuple(groups),)
    even = split([group_of(str(k)) for k in range(10)], lambda group: 1, 9)
    assert [len(part) for part in even] == [5, 5]


class Memory:
    """Memory in which a call of n samples takes 100 + 10 n bytes, and what is summed a hundred for each group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: int = 1000) -> None:
        self.shown: list[int] = []
        now = [0]

        class Peak:
            before = held

            def __init__(self, device: torch.device) -> None: ...

            def __enter__(self) -> Peak:
                return self

            def __exit__(self, *exc: object) -> None:
                self.bytes = held + now[0]

        def rehearse(groups: Sequence[Any], source: NoisedBatches) -> None:
            (batch,) = list(source)
            self.shown.append(len(batch.sample_ids))
            now[0] = 100 + 10 * len(batch.sample_ids) + 100 * len(groups)

        monkeypatch.setattr(rounds_module, "Peak", Peak)
        monkeypatch.setattr(rounds_module, "held_bytes", lambda device: held)
        self.groups = [group_of(f"g{k}") for k in range(8)]
        self._rehearse = rehearse

    def plan(self, memory: int, source: object) -> Rounds:
        options: dict[str, Any] = {"bytes_of": lambda group: 100, "weights": 500, "device": CPU}
        return plan_rounds(self.groups, source, self._rehearse, memory=memory, **options)


def batches_of(size: int) -> NoisedBatches:
    batch = dataclasses.make_dataclass("Batch", ["sample_ids"])(range(size))
    return NoisedBatches(lambda: [batch] * 3, 10, 1, rows=24, batch_size=size, remake=batches_of)  # type: ignore[list-item]


def test_ample_memory_needs_no_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    plan = memory.plan(10_000, batches_of(8))
    assert (len(plan.groups), plan.batch_size, plan.was_planned) == (1, None, False)
    assert memory.shown == []


def test_what_does_not_fit_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    plan = memory.plan(1700, batches_of(8))
    assert memory.shown == [1, 2]
    # Of 700 bytes a call of eight samples takes 1.1 x 180, so that 502 are left for sums of 100 each.
    assert [len(part) for part in plan.groups] == [4, 4]
    assert plan.batch_size == 8
    assert "800 B of sums in 2 rounds, 8 samples a call, about 1 min" in str(plan)
    tight = memory.plan(1300, batches_of(8))
    assert tight.batch_size is not None
    assert tight.batch_size < 8
    room = 300 - 1.1 * (100 + 10 * tight.batch_size)
    assert all(100 * len(part) <= room for part in tight.groups)


def test_too_little_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"of 1.20 kB, 1.00 kB are held already .*, a call of one sample takes 121 B and the sums of .*'g0' 100 B"
    with pytest.raises(PruningError, match=message):
        Memory(monkeypatch).plan(1200, batches_of(8))


def test_a_run_that_is_only_watched_is_split_without_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    plan = memory.plan(1800, object())
    assert [len(part) for part in plan.groups] == [4, 4]
    assert memory.shown == []
