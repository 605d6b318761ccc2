"""Distillation on what blocks put out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.recovery import pairs
from pruning.recovery.batches import TrainingBatch
from pruning.recovery.features import Features, by_channel, feature_error
from pruning.recovery.objective import training_step
from pruning.recovery.twins import Twin
from pruning.surgery import apply_plan
from pruning.types import PruningPlan
from tests.models import MODELS
from tests.models import run as output_of
from tests.plans import random_plan
from tests.unit.recovery_setup import run, small
from tests.unit.test_recovery_blocks import cut


def test_the_error_by_hand():
    theirs = torch.tensor([[[1.0, 2.0], [3.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]])  # (B, N, C)
    mine = theirs + torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    # powers 5 and 4, 1 of error; powers 4 and 0, whose median counts as 2, the mean
    torch.testing.assert_close(feature_error(mine, theirs, 2), torch.tensor([1 / 9, 1 / 4]))


def test_a_massive_channel_counts_no_more_than_ten_of_the_median():
    theirs = torch.ones(1, 4, 5)
    theirs[..., 0] = 1000.0
    massive, plain = theirs.clone(), theirs.clone()
    massive[..., 0] += 1000.0  # by its own size
    plain[..., 1] += 1.0  # the same
    assert feature_error(massive, theirs, 1).item() == pytest.approx(10 / 14)
    assert feature_error(plain, theirs, 1).item() == pytest.approx(1 / 14)


def test_an_error_is_that_of_its_sample():
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(3, 6, 4, 4, generator=generator) for _ in range(2))
    alone = torch.cat([feature_error(mine[k : k + 1], theirs[k : k + 1], 1) for k in range(3)])
    torch.testing.assert_close(feature_error(mine, theirs, 3), alone)


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        ((2, 5), 2, (2, 1, 5)),
        ((2, 7, 5), 2, (2, 7, 5)),
        ((2, 5, 3, 4), 2, (2, 12, 5)),
        ((2, 5, 3, 4, 2), 2, (2, 24, 5)),
        ((14, 5), 2, (1, 14, 5)),
    ],
)
def test_channels_are_found_by_shape(shape, rows, expected):
    assert by_channel(torch.zeros(shape), rows).shape == expected


class Two(nn.Module):
    """A denoiser of two blocks, each of which multiplies."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Times(first), Times(second)])

    def forward(self, sample: Tensor) -> tuple[Tensor]:
        for block in self.blocks:
            sample = block(sample)
        return (sample,)


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


BLOCKS = [Twin("blocks.0", "blocks.0"), Twin("blocks.1", "blocks.1")]


def _batch(rows: int = 2) -> TrainingBatch:
    zeros = torch.zeros(rows, dtype=torch.long)
    return TrainingBatch(
        {"sample": torch.ones(rows, 1, 2, 2)}, torch.ones(rows, 1, 2, 2), zeros, zeros, zeros > 0, 0
    )


def test_the_loss_by_hand():
    student, teacher, features = Two(2.0, 2.0), Two(1.0, 2.0), Features(BLOCKS)
    with features.watched(student, teacher):
        loss = training_step(
            student, teacher, _batch(), distill_weight=0.25, feature_weight=0.5, features=features
        )
    # target 1, dense 2, slim 4; blocks 2 for 1 and 4 for 2
    assert loss.item() == 0.75 * (4 - 1) ** 2 + 0.25 * (4 - 2) ** 2 + 0.5 * (1 + 1) / 2
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_hooks for module in student.modules())


def test_features_alone_need_no_data_loss_and_reach_the_first_block():
    student, teacher, features = Two(2.0, 1.0), Two(1.0, 1.0), Features(BLOCKS[:1])
    with features.watched(student, teacher):
        training_step(
            student, teacher, _batch(), distill_weight=1.0, feature_weight=1.0, features=features
        ).backward()
        assert student.blocks[1].by.grad is not None
        output_of_first = student(torch.ones(1))  # not taken
        assert features._found == {}
    assert output_of_first[0].item() == 2.0


def test_what_does_not_agree_is_refused():
    features = Features([Twin("blocks.0", "blocks.0")])
    student, teacher = Two(1.0, 1.0), Two(1.0, 1.0)
    teacher.blocks[0] = nn.Linear(2, 3)
    with features.watched(student, teacher), features.taken():
        student(torch.ones(2, 2))
        teacher.blocks[0](torch.ones(2, 2))
    message = (
        r"block 'blocks.0' puts out \(2, 2\), and 'blocks.0' of the dense model \(2, 3\); leave that pair out"
    )
    with pytest.raises(PruningError, match=message):
        features.distance(2)
    with features.taken():
        pass
    with pytest.raises(PruningError, match="no block of the model was called"):
        features.distance(2)


@pytest.mark.parametrize("name", ["dit", "unet2d", "unet2d-condition"])
def test_pairs_put_out_the_same_shapes(name):
    dense = MODELS[name]()
    for seed, kinds in enumerate([("attention_heads", "ffn_channels", "resnet_channels"), ("blocks",)]):
        plan = random_plan(dense, kinds, seed=seed)
        slim = apply_plan(copy.deepcopy(dense), plan)
        found = pairs(dense, plan)
        assert len(found) > 1
        assert torch.all(apart(slim, dense, found) > 0)


def apart(slim: nn.Module, dense: nn.Module, found: list[Twin]) -> Tensor:
    """How far the blocks' outputs are apart on a fixed call, (2,)."""
    features = Features(found)
    with features.watched(slim, dense), features.taken():
        output_of(slim), output_of(dense)
    return features.distance(2)


def test_pairs_of_blocks_that_moved():
    dense = MODELS["dit"]()
    assert pairs(dense, PruningPlan(removed_blocks=("transformer_blocks.1",))) == [
        Twin("transformer_blocks.0", "transformer_blocks.0"),
        Twin("transformer_blocks.1", "transformer_blocks.2"),
    ]


def test_a_model_that_lost_blocks_asks_for_pairs():
    dense = MODELS["dit"]()
    plan = cut(dense, ("transformer_blocks.1",))
    slim = apply_plan(copy.deepcopy(dense), plan)
    with pytest.raises(
        PruningError, match=r"which block of the dense model .* give `features`, the result of"
    ):
        run(slim, dense, feature_weight=0.1)
    losses = [loss for _, loss in run(slim, dense, feature_weight=0.1, features=pairs(dense, plan)).losses]
    plain = [loss for _, loss in run(apply_plan(copy.deepcopy(dense), plan), dense).losses]
    assert losses[0] > plain[0]


def test_blocks_follow_the_teacher():
    how: dict[str, Any] = {"steps": 30, "batch_size": 8, "learning_rate": 3e-3, "ema_decay": 0.8}
    both = [Twin(f"transformer_blocks.{k}", f"transformer_blocks.{k}") for k in (0, 1)]
    told, alone = small(1), small(1)
    run(told, small(0), feature_weight=1.0, **how)
    run(alone, small(0), **how)
    assert apart(told, small(0), both).mean() < 0.7 * apart(alone, small(0), both).mean()


def test_features_need_a_teacher_and_a_weight_that_is_one():
    with pytest.raises(PruningError, match=r"feature_weight=0.1 needs the dense model as teacher"):
        run(small(1), None, distill_weight=0.0, feature_weight=0.1)
    with pytest.raises(PruningError, match=r"feature_weight: -1.0 must be at least 0"):
        run(small(1), small(), feature_weight=-1.0)


def test_micro_batches_change_nothing():
    one = run(small(1), small(), steps=3, feature_weight=0.5)
    two = run(small(1), small(), steps=3, feature_weight=0.5, gradient_accumulation=2)
    assert [loss for _, loss in one.losses] == pytest.approx([loss for _, loss in two.losses], rel=1e-4)
