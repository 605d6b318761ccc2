"""Block-wise distillation: each cut block against its dense twin."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.recovery import blocks as module
from pruning.recovery import recover_blocks, twins
from pruning.recovery.blocks import BlocksResult, Twin
from pruning.settings import Recover
from pruning.surgery import apply_plan
from pruning.types import PruningPlan
from tests.models import MODELS
from tests.unit.calibration_setup import noised

SETTINGS = Recover(
    steps=12, batch_size=4, learning_rate=2e-3, warmup_steps=1, ema_decay=0.0, checkpoint_every=5
)


def cut(model: nn.Module, removed: tuple[str, ...] = (), kinds: tuple[str, ...] = ()) -> PruningPlan:
    """A plan that takes a third of every group's units."""
    groups = [group for group in find_groups(model) if group.kind != "blocks" and group.num_units > 1]
    kept = {
        group.name: tuple(range(group.num_units - max(1, group.num_units // 3)))
        for group in groups
        if not kinds or group.kind in kinds
    }
    return PruningPlan(kept=kept, removed_blocks=removed)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, list[Twin]]:
    """A dense DiT, a slim one, and what of it is to be trained."""
    dense = MODELS["dit"]().eval()
    plan = cut(dense)
    return dense, apply_plan(copy.deepcopy(dense), plan).eval(), twins(dense, plan)


def recovered(pair: tuple[nn.Module, nn.Module, list[Twin]], folder: Path, **changes: Any) -> BlocksResult:
    dense, slim, found = pair
    options = {"settings": SETTINGS, "source": noised(dense, 8, 4), "device": "cpu", **changes}
    return recover_blocks(slim, dense, found, folder=folder, **options)


def test_twins_of_blocks_that_moved() -> None:
    dense = MODELS["dit"]()
    assert twins(dense, PruningPlan()) == []
    some = twins(dense, cut(dense, ("transformer_blocks.1",)))
    assert some == [
        Twin("transformer_blocks.0", "transformer_blocks.0"),
        Twin("transformer_blocks.1", "transformer_blocks.2"),
    ]


@pytest.mark.parametrize("name", ["unet2d-condition", "unet2d"])
def test_twins_of_a_unet_hold_all_that_was_cut(name: str) -> None:
    dense = MODELS[name]()
    plan = cut(dense)
    slim, found = apply_plan(copy.deepcopy(dense), plan), twins(dense, plan)
    before, after = dict(dense.named_parameters()), dict(slim.named_parameters())
    smaller = {path for path in after if after[path].shape != before[path].shape}
    assert smaller
    assert all(any(path.startswith(f"{twin.slim}.") for twin in found) for path in smaller)
    assert all(any(path.startswith(f"{twin.slim}.") for path in smaller) for twin in found)


def test_blocks_get_better_and_nothing_else_changes(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path
) -> None:
    before = [copy.deepcopy(model.state_dict()) for model in pair[:2]]
    told: list[int] = []
    found = recovered(pair, tmp_path, progress=lambda now: told.append(now.step))
    assert [block.block for block in found.blocks] == [twin.slim for twin in pair[2]]
    assert all(block.kept and block.after < 0.8 * block.before for block in found.blocks)
    assert told == list(range(1, 12 * len(found.blocks) + 1))
    slim = pair[1].state_dict()
    assert set(found.changed) == {
        name for name in slim if any(name.startswith(f"{t.slim}.") for t in pair[2])
    }
    assert all(value.shape == slim[name].shape for name, value in found.changed.items())
    for model, state in zip(pair[:2], before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not list(tmp_path.rglob("*.pt"))


def test_a_killed_recovery_goes_on_as_if_it_had_not_been(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path
) -> None:
    whole = recovered(pair, tmp_path / "whole")

    def kill(now: Any) -> None:
        if now.step == 12 + 7:  # in the second block, after its checkpoint of step 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recovered(pair, tmp_path / "killed", progress=kill)
    told: list[int] = []
    again = recovered(pair, tmp_path / "killed", progress=lambda now: told.append(now.step))
    assert told[0] == 12 + 6
    assert all(torch.equal(value, whole.changed[name]) for name, value in again.changed.items())
    assert [block.losses for block in again.blocks] == [block.losses for block in whole.blocks]


def test_little_disk_takes_more_runs_of_the_dense_model(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recovered(pair, tmp_path / "whole")
    runs: list[int] = []
    record = module._record

    def counted(teacher: nn.Module, blocks: list[Twin], *others: Any) -> Any:
        runs.append(len(blocks))
        return record(teacher, blocks, *others)

    monkeypatch.setattr(module, "_record", counted)
    monkeypatch.setattr(module, "DISK", 1e-12)
    found = recovered(pair, tmp_path / "little")
    assert runs == [1] * len(pair[2])
    assert all(torch.equal(value, whole.changed[name]) for name, value in found.changed.items())


def test_a_block_that_gets_no_better_stays_as_it_was_cut(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path
) -> None:
    found = recovered(pair, tmp_path, settings=replace(SETTINGS, learning_rate=0.03))
    assert not any(block.kept for block in found.blocks)
    assert not found.changed


def test_what_cannot_be_trained_is_refused(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path
) -> None:
    dense, slim, _ = pair
    with pytest.raises(PruningError, match="no block of the model lost anything"):
        recovered((dense, slim, []), tmp_path)
    with pytest.raises(PruningError, match="nothing is shown to the dense model"):
        recovered(pair, tmp_path, source=noised(dense, 0, 4))
