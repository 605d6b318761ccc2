"""Block-wise distillation: each cut block against its dense twin."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning.data.batches import NoisedBatch, NoisedBatches, move
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.recovery import BlocksResult, block_training, blocks, recover_blocks, twins
from pruning.recovery.twins import Twin
from pruning.settings import Recover
from pruning.surgery import apply_plan
from pruning.types import PruningPlan, inside, slices_of
from tests.models import MODELS
from tests.unit.calibration_setup import noised
from tests.zoo import ZOO, Draw, build

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
    source = changes.pop("source", None) or noised(dense, 8, 4)
    options = {"settings": SETTINGS, "device": "cpu", **changes}
    return recover_blocks(slim, dense, found, source, folder=folder, **options)


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


@pytest.mark.parametrize("train", ["lora", "norms_biases_head"])
def test_of_each_block_only_a_part_may_be_trained(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, train: str
) -> None:
    settings = replace(SETTINGS, train=train, lora_rank=2, learning_rate=1e-2)
    found = recovered(pair, tmp_path, settings=settings)
    assert any(block.kept and block.after < block.before for block in found.blocks)
    slim = pair[1].state_dict()
    assert {*found.changed} <= {*slim}
    moved = [name for name, value in found.changed.items() if not torch.equal(value, slim[name])]
    assert moved
    assert all(name.endswith(".weight") for name in moved) == (train == "lora")


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
    record = blocks.record

    def counted(teacher: nn.Module, folders: dict[Twin, Path], *others: Any) -> Any:
        runs.append(len(folders))
        return record(teacher, folders, *others)

    monkeypatch.setattr(blocks, "record", counted)
    monkeypatch.setattr(blocks, "DISK", 1e-12)
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


def test_a_folder_of_another_recovery_is_refused(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path
) -> None:
    whole = recovered(pair, tmp_path)
    assert recovered(pair, tmp_path).blocks == whole.blocks
    message = r"holds another one \(settings\.learning_rate was 0\.002, is 0\.001\); name another folder"
    with pytest.raises(PruningError, match=message):
        recovered(pair, tmp_path, settings=replace(SETTINGS, learning_rate=1e-3))
    batches = [
        replace(batch, call={**batch.call, "hidden_states": batch.call["hidden_states"] + 1})
        for batch in noised(pair[0], 8, 4)
    ]
    with pytest.raises(PruningError, match=r"holds another one \(shown was"):
        recovered(pair, tmp_path, source=replace(noised(pair[0]), make=lambda: batches))


def test_time_is_shared_by_the_blocks(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[Any] = []
    train = block_training.train_back

    def noted(*args: Any) -> Any:
        limits.append(args[4].max_seconds)
        return train(*args)

    monkeypatch.setattr(block_training, "train_back", noted)
    found = recovered(pair, tmp_path, settings=replace(SETTINGS, max_seconds=1e-6 * len(pair[2])))
    assert limits == [pytest.approx(1e-6)] * len(pair[2])
    assert all(len(block.losses) == 1 for block in found.blocks)


def test_what_is_also_read_outside_of_a_block_stays(tmp_path: Path) -> None:
    """DiT's output is conditioned by the embedder of its first block."""
    dense = MODELS["dit"]().eval()
    plan = cut(dense, kinds=("ffn_channels",))
    slim = apply_plan(copy.deepcopy(dense), plan).eval()
    found = recovered((dense, slim, twins(dense, plan)), tmp_path)
    outside, before = "transformer_blocks.0.norm1.emb.", slim.state_dict()
    trained = {name for name, value in found.changed.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("transformer_blocks.0.") for name in trained)
    assert not any(name.startswith(outside) for name in trained)
    assert any(name.startswith("transformer_blocks.1.norm1.emb.") for name in trained)


class Aside(nn.Module):
    """One block, whose feed-forward also reads the input in some calls."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.blocks = dense.transformer_blocks[:1]

    def forward(self, x: torch.Tensor, aside: bool = False) -> torch.Tensor:
        times = {"timestep": torch.tensor([1]), "class_labels": torch.tensor([1])}
        added = self.get_submodule("blocks.0.ff")(x) if aside else 0
        return self.get_submodule("blocks.0")(x, **times) + added


def test_what_later_batches_read_outside_of_a_block_stays(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path
) -> None:
    dense, slim = (Aside(copy.deepcopy(model)) for model in pair[:2])
    ids, draw = torch.arange(1), torch.Generator().manual_seed(0)
    calls = [{"x": torch.randn(1, 4, 32, generator=draw), "aside": aside} for aside in (False, True, False)]
    batches = [NoisedBatch(call, None, 0, ids, ids) for call in calls]
    source = NoisedBatches(lambda: batches, 1000, 1)
    found = recovered((dense, slim, [Twin("blocks.0", "blocks.0")]), tmp_path, source=source)
    before = slim.state_dict()
    trained = {name for name, value in found.changed.items() if not torch.equal(value, before[name])}
    assert trained
    assert not any(name.startswith("blocks.0.ff.") for name in trained)


def test_an_embedder_that_serves_several_blocks_stays(tmp_path: Path) -> None:
    dense = MODELS["dit"]().eval()
    paths = [f"transformer_blocks.{k}.norm1.emb" for k in range(3)]
    for path in paths[1:]:
        dense.get_submodule(path).load_state_dict(dense.get_submodule(paths[0]).state_dict())
    plan = replace(cut(dense, kinds=("ffn_channels",)), shared=(tuple(paths),))
    slim = apply_plan(copy.deepcopy(dense), plan).eval()
    found = recovered((dense, slim, twins(dense, plan)), tmp_path)
    assert {*found.changed} <= {*slim.state_dict()}
    assert not any(
        "norm1.emb" in name and not torch.equal(value, slim.state_dict()[name])
        for name, value in found.changed.items()
    )


@pytest.mark.parametrize("name", ["kandinsky3", "sd15", "flux", "unet1d"])
def test_no_block_shares_a_cut_group_with_what_is_around_it(name: str) -> None:
    dense = build(ZOO[name])
    groups, plan = find_groups(dense), cut(dense)
    found = twins(dense, plan)
    assert found
    for group in plan.cuts(groups):
        owners = {part.path.rpartition(".")[0] for part in slices_of(group)}
        assert sum(any(inside(owner, twin.dense) for owner in owners) for twin in found) == 1
        assert any(all(inside(owner, twin.dense) for owner in owners) for twin in found)


def test_a_model_that_keeps_some_weights_in_float32(tmp_path: Path) -> None:
    """The first weights of Wan's blocks stay float32 in a bfloat16 model, and what enters the blocks is bfloat16."""
    tiny = ZOO["wan"]
    dense = build(tiny).to(torch.bfloat16)
    for name, parameter in dense.named_parameters():
        if "scale_shift_table" in name:
            parameter.data = parameter.data.float()
    plan = cut(dense)
    slim = apply_plan(copy.deepcopy(dense), plan).eval()
    calls = [move(tiny.call(Draw(seed)), "cpu", torch.bfloat16) for seed in (1, 2)]
    ids = torch.arange(2)
    batches = [NoisedBatch(call, None, 0, ids, Draw().times()) for call in calls]
    source = NoisedBatches(lambda: batches, 1000, 1)
    found = recovered((dense, slim, twins(dense, plan)), tmp_path, source=source)
    assert all(block.after < block.before for block in found.blocks)
    kinds = {name: value.dtype for name, value in slim.state_dict().items()}
    assert {name: value.dtype for name, value in found.changed.items()} == {
        name: kinds[name] for name in found.changed
    }


class Told(nn.Module):
    """A model of two blocks, of which one is never called, the other with what cannot be written to a file."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.blocks = dense.transformer_blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule("blocks.0")(
            x,
            timestep=torch.tensor([1]),
            class_labels=torch.tensor([1]),
            cross_attention_kwargs={"scale": lambda: 1},
        )


def test_calls_that_cannot_be_written_and_blocks_that_are_not_called(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense, slim, found = Told(pair[0]), Told(pair[1]), [Twin(f"blocks.{k}", f"blocks.{k}") for k in (0, 1)]
    batch = NoisedBatch({"x": torch.zeros(1, 4, 32)}, None, 0, torch.arange(1), torch.arange(1))
    source = NoisedBatches(lambda: [batch], 1000, 1)
    with pytest.raises(
        PruningError, match=r"what block 'blocks\.0' is called with cannot be written to a file"
    ):
        recovered((dense, slim, found), tmp_path / "one", source=source)
    result = recovered((dense, slim, found[1:]), tmp_path / "other", source=source)
    assert not result.changed
    assert "blocks.1 stays as it was cut: the dense model does not call it" in caplog.text


def test_one_process(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PruningError, match="it works in one process; start it without accelerate launch"):
        recovered(pair, tmp_path)


def test_a_full_disk_while_inputs_are_recorded(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(PruningError, match=r"cannot write inputs of blocks in .*the disk is full"):
            recovered(pair, tmp_path)
    assert recovered(pair, tmp_path).changed


def test_what_a_block_is_judged_by_is_drawn_by_no_dropout(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training: list[str] = []
    error = block_training._error

    def judged(slim: Any, dense: Any, *others: Any) -> float:
        training.extend(name for name, part in dense.named_modules() if part.training)
        return error(slim, dense, *others)

    monkeypatch.setattr(block_training, "_error", judged)
    recovered(pair, tmp_path)
    assert training == []


@pytest.mark.parametrize(
    "changes", [{"eval_every": 5}, {"gradient_checkpointing": True}, {"tracker": "tensorboard"}]
)
def test_settings_of_a_whole_model_are_refused(
    pair: tuple[nn.Module, nn.Module, list[Twin]], tmp_path: Path, changes: dict[str, Any]
) -> None:
    (key,) = changes
    with pytest.raises(PruningError, match=rf"recovery by blocks: {key}: .* trained as a whole"):
        recovered(pair, tmp_path, settings=replace(SETTINGS, **changes))
