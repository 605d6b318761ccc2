"""Rows of every kind of consumer: convolutions of all dimensions, and the matrices of a stack of experts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.calibration import calibrate
from pruning.calibration.routing import experts_with_gradients, in_batch_order
from pruning.calibration.rows import Consumer
from pruning.data.batches import NoisedBatch, NoisedBatches
from pruning.errors import PruningError
from pruning.importance import score
from pruning.surgery.compensation import compensate
from pruning.types import ParamSlice, PrunableGroup, PruningPlan, matrix_of, parameter_path
from tests.zoo import ZOO, build

NEEDS = ("row_weight", "input_sum", "input_moment", "output_sensitivity", "probe_diag", "input_unit_moment")
DOWN = "blocks.0.down_proj"
KEYS = [f"{DOWN}[{expert}].T" for expert in range(3)]


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv1d(6, 3, 5, padding=2), (7,)),
        (nn.Conv1d(6, 3, 3, stride=2, dilation=2), (11,)),
        (nn.Conv2d(6, 3, (3, 2), padding="same"), (4, 5)),
        (nn.Conv2d(6, 3, 3, stride=2, padding=1), (6, 5)),
        (nn.Conv3d(6, 3, (3, 1, 1), padding=(1, 0, 0)), (4, 2, 3)),
        (nn.Conv3d(6, 3, 3, stride=(1, 2, 1), dilation=(2, 1, 1), padding=1), (5, 4, 3)),
    ],
)
def test_rows_are_what_the_weight_reads(conv: Any, size: tuple[int, ...]) -> None:
    place = Consumer("conv", "conv", conv, 0, 6, 6, 3)
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([found for _, found in place.rows(x)])
    assert rows.shape[2] == place.columns
    expected = conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows @ conv.weight.flatten(1).T + conv.bias, expected)
    assert place.output_rows(conv(x)).shape == expected.shape
    assert place.tokens(x).shape == (2, x[0, 0].numel(), 6)


class Stack(nn.Module):
    """Three experts; the first `sent` rows of each sample go to expert 0, the others to expert 1, none to 2."""

    def __init__(self, grouped: bool, sent: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.down_proj = nn.Parameter(torch.randn(3, 4, 8, generator=generator))
        self.grouped, self.sent = grouped, sent

    def forward(self, x: Tensor) -> Tensor:
        parts = x[:, : self.sent].flatten(0, 1), x[:, self.sent :].flatten(0, 1), x[:0, 0]
        if self.grouped:
            ends = torch.tensor([len(part) for part in parts]).cumsum(0).to(torch.int32)
            y = F.grouped_mm(torch.cat(parts), self.down_proj, offs=ends)
        else:
            y = torch.cat([part @ self.down_proj[index] for index, part in enumerate(parts) if len(part)])
        head, tail = y.split([len(parts[0]), len(parts[1])])
        return torch.cat([head.unflatten(0, (len(x), -1)), tail.unflatten(0, (len(x), -1))], dim=1)


class Denoiser(nn.Module):
    def __init__(self, grouped: bool = False, sent: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Stack(grouped, sent)])

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (self.blocks[0](hidden),)


def stack_of(model: Denoiser) -> Tensor:
    return model.get_parameter(DOWN)


def experts() -> PrunableGroup:
    return PrunableGroup(
        "blocks.0:ffn_channels",
        "blocks.0",
        "ffn_channels",
        4,
        1,
        consumed_by=(ParamSlice(DOWN, 1, 1, stack=3),),
    )


def source(bucket: Any = 0, rows: int = 6) -> NoisedBatches:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, rows, 4, generator=generator)
    batch = NoisedBatch(
        {"hidden": x}, torch.zeros(2, rows, 8), bucket, torch.tensor([0, 1]), torch.tensor([1.0, 9.0])
    )
    return NoisedBatches(lambda: [batch], 10, 2)


def inputs(rows: int = 6) -> Tensor:
    return next(iter(source(rows=rows))).call["hidden"]


def test_a_stack_is_as_many_consumers_as_it_has_matrices() -> None:
    group = experts()
    assert [one.consumer_key for one in group.consumers] == KEYS
    assert {one.consumer for one in group.consumers} == {"blocks.0"}
    with pytest.raises(PruningError, match="has 3 consumers"):
        _ = group.read_by
    whole = stack_of(Denoiser())
    assert torch.equal(matrix_of(whole, KEYS[1]), whole[1].T)
    assert torch.equal(matrix_of(whole, f"{DOWN}[1]"), whole[1])
    assert parameter_path(KEYS[1]) == parameter_path(DOWN) == DOWN
    turned = ParamSlice(DOWN, 2, 1, stack=2).entries
    assert [part.path for part in turned] == [f"{DOWN}[0]", f"{DOWN}[1]"]


@pytest.mark.parametrize("grouped", [False, True])
def test_moments_and_gradients_are_those_of_each_expert(grouped: bool) -> None:
    model = Denoiser(grouped)
    stats = calibrate(model, [experts()], source(torch.tensor([0, 1])), needs=NEEDS)
    for key, rows in zip(KEYS, (inputs()[:, :2], inputs()[:, 2:], inputs()[:, :0]), strict=True):
        assert stats.get(key, "row_weight").tolist() == [rows.shape[1], rows.shape[1]]
        torch.testing.assert_close(stats.get(key, "input_sum"), rows.double().sum(1))
        flat = rows.flatten(0, 1).double()
        torch.testing.assert_close(stats.get(key, "input_moment"), flat.T @ flat, rtol=1e-5, atol=1e-5)
        # the model ends with the experts: each row of the output has the random sign itself for a gradient
        assert stats.get(key, "output_sensitivity").diagonal().tolist() == pytest.approx(
            [2.0 * rows.shape[1]] * 8
        )


def test_an_expert_without_rows_scores_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    group, model = experts(), Denoiser()
    stats = calibrate(model, [group], source(), needs=NEEDS)
    scores = score(model, [group], stats, criterion="probe_obs").values[group.name]
    assert (
        f"group {group.name}: no row of the calibration reached {KEYS[2]}, where its units score 0"
        in caplog.text
    )
    reached = [
        score(model, [one], stats, criterion="probe_obs").values[one.name] for one in group.consumers[:2]
    ]
    torch.testing.assert_close(scores, reached[0] + reached[1])
    assert bool((scores > 0).all())


def test_magnitude_counts_a_stack_once() -> None:
    model = Denoiser()
    found = score(model, [experts()], criterion="magnitude").values[experts().name]
    expected = stack_of(model).detach().double().square().sum((0, 2)).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_least_squares_in_a_stack_goes_about_zero_for_want_of_a_bias() -> None:
    group, model = experts(), Denoiser()
    stats = calibrate(model, [group], source(), needs=NEEDS)
    plan = PruningPlan(kept={group.name: (0, 2, 3)})
    before = stack_of(model).detach().clone()
    folded = copy.deepcopy(model)
    compensate(folded, [group], plan, stats, "fold")
    assert torch.equal(stack_of(folded)[:, [0, 2, 3]], before[:, [0, 2, 3]])
    report = compensate(model, [group], plan, stats, "least_squares", ridge=0.0)[group.name]
    after, kept = stack_of(model).detach(), [0, 2, 3]
    error = 0.0
    for expert, rows in enumerate((inputs()[:, :2], inputs()[:, 2:])):
        x, old = rows.flatten(0, 1).double(), before[expert].double()
        best = torch.linalg.lstsq(x[:, kept], x @ old).solution
        torch.testing.assert_close(after[expert, kept].double(), best, rtol=1e-3, atol=1e-3)
        error += float((x[:, kept] @ best - x @ old).square().sum() / len(x))
    assert report["error_after"] == pytest.approx(error, rel=1e-3, abs=1e-6)
    assert report["error_after"] < report["error_before"]
    assert torch.equal(after[2, kept], before[2, kept])  # no row reached it
    assert bool((after[:, 1] == 0).all())


def test_a_stack_that_is_read_in_another_way_is_refused() -> None:
    class Other(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bni,io->bno", x, self.down_proj.sum(0))

    model = Denoiser()
    model.blocks[0] = Other(False)
    with pytest.raises(PruningError, match="is a stack of matrices, but Other multiplies with none of them"):
        calibrate(model, [experts()], source(), needs=NEEDS)


def linear(path: str) -> PrunableGroup:
    return PrunableGroup(
        f"{path}:ffn_channels", path, "ffn_channels", 4, 1, consumed_by=(ParamSlice(f"{path}.weight", 1, 1),)
    )


class Routed(nn.Module):
    """One expert that gets tokens of both samples in an order of its own."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts, self.frozen = nn.ModuleList([nn.Linear(4, 8)]), frozen

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.flatten(0, 1).flip(0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            y = self.experts[0](x)
        return y.flip(0).view(*hidden.shape[:2], 8) + hidden.sum()


def test_rows_in_an_order_of_their_own_belong_to_the_call_as_a_whole() -> None:
    model, group = Routed(), linear("experts.0")
    assert not in_batch_order(model, "experts.0")
    assert in_batch_order(model, "shared_experts.w2")
    stats = calibrate(model, [group], source(1), needs=NEEDS)
    assert stats.get("experts.0", "row_weight").tolist() == [0, 12]
    with pytest.raises(
        PruningError, match="12 entries that do not follow the order of the denoiser's batch of 2"
    ):
        calibrate(model, [group], source(torch.tensor([0, 1])), needs=NEEDS)
    with pytest.raises(
        PruningError, match="'taylor' takes samples one by one; calibrate with a batch size of 1"
    ):
        calibrate(model, [group], source(1), needs=["taylor"])


def test_a_consumer_whose_model_switches_gradients_off_is_refused() -> None:
    with pytest.raises(
        PruningError, match=r"'experts\.0' runs without gradients, which its model switches off"
    ):
        calibrate(Routed(frozen=True), [linear("experts.0")], source(1), needs=NEEDS)


def test_experts_compute_the_same_with_gradients() -> None:
    model = build(ZOO["hidream"])
    experts = model.get_submodule("double_stream_blocks.0.block.ff_i")
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain = experts(x)
    with experts_with_gradients(model):
        found = experts(x)
        assert not any(module.training for module in experts.children())
    assert not experts.training
    torch.testing.assert_close(found, plain)
    (through,) = torch.autograd.grad(found.sum(), x)
    (beside,) = torch.autograd.grad(plain.sum(), x)
    assert not torch.allclose(through, beside)
