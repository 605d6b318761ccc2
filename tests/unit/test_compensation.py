"""Compensation: exact where it can be, never worse than doing less, and careful with what it edits."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.errors import PruningError
from pruning.surgery.compensation import compensate, compensation_needs
from pruning.types import BlockRemoval, CalibrationStats, ParamSlice, PrunableGroup, PruningPlan
from tests.unit.importance_rows import linear_group, random_rows, sums

NOTHING = CalibrationStats()


class Net(nn.Module):
    """A consumer at ``m.out``, which is all that compensation touches."""

    def __init__(self, out: nn.Module) -> None:
        super().__init__()
        self.m = nn.Module()
        self.m.out = out


def linear_net(width: int, out: int = 3, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net(nn.Linear(width, out, bias=bias, dtype=dtype))


def masked(net: Net, group: PrunableGroup, plan: PruningPlan, x: Tensor) -> Tensor:
    """Output for rows x (N, P) with the removed units' columns zeroed."""
    weight = net.m.out.weight.detach().flatten(1).clone()
    weight[:, removed_columns(group, plan, weight.shape[1])] = 0
    return x @ weight.T + (0 if net.m.out.bias is None else net.m.out.bias.detach())


def removed_columns(group: PrunableGroup, plan: PruningPlan, width: int) -> Tensor:
    return ParamSlice("", 1, width // group.num_units).indices(plan.removed_units(group))


def run(
    net: nn.Module, group: PrunableGroup, plan: PruningPlan, rows: Tensor, method: str, **more: float
) -> dict:
    stats = CalibrationStats({group.name: sums(rows, group.num_units)})
    return compensate(net, [group], plan, stats, method, **more)


def test_needs():
    assert compensation_needs("none") == set()
    assert compensation_needs("fold") == {"input_sum", "row_weight"}
    assert compensation_needs("least_squares") == {"input_moment", "input_sum", "row_weight"}
    with pytest.raises(PruningError, match="unknown compensation 'lsq'; valid: none, fold, least_squares"):
        compensation_needs("lsq")


def test_folding_by_hand():
    # W = (1, 2, 3), b = 10, mean (4, 5, 6); unit 1 goes: b = 10 + 2 * 5
    group, net = linear_group(3, 1), linear_net(3, 1)
    with torch.no_grad():
        net.m.out.weight.copy_(torch.tensor([[1.0, 2, 3]]))
        net.m.out.bias.fill_(10)
    rows = torch.tensor([[3.0, 4, 6], [5, 6, 6]])
    report = run(net, group, PruningPlan({group.name: (0, 2)}), rows, "fold")
    assert net.m.out.bias.item() == 20
    assert net.m.out.weight.tolist() == [[1, 0, 3]]
    # before: mean of (2 * 4)^2 and (2 * 6)^2; after: variance of 2 x
    assert report[group.name] == {
        "method": "fold",
        "removed_units": 1,
        "ridge": None,
        "error_before": pytest.approx(104),
        "error_after": pytest.approx(4),
        "error_removed": pytest.approx(1 - 4 / 104),
    }
    json.dumps(report, allow_nan=False)


def test_folding_needs_no_moment_and_then_reports_no_error():
    group, net = linear_group(3, 1), linear_net(3, 1)
    full = sums(random_rows(20, 3), 3)
    stats = CalibrationStats({group.name: {name: full[name] for name in ("input_sum", "row_weight")}})
    report = compensate(net, [group], PruningPlan({group.name: (0, 2)}), stats, "fold")
    assert report[group.name]["error_after"] is None
    assert report[group.name]["removed_units"] == 1


def test_least_squares_by_hand():
    # Two equal columns, W = (1, 2): the kept one takes the other's weight over and the bias stays.
    group, net = linear_group(2, 1), linear_net(2, 1)
    with torch.no_grad():
        net.m.out.weight.copy_(torch.tensor([[1.0, 2]]))
        net.m.out.bias.zero_()
    rows = torch.tensor([[3.0, 3], [5, 5]])
    plan = PruningPlan({group.name: (0,)})
    report = run(net, group, plan, rows, "least_squares", ridge=0.25)  # variance 1: dW = 2 * 1 / (1 + 0.25)
    assert net.m.out.weight[0].tolist() == pytest.approx([1 + 1.6, 0])
    assert net.m.out.bias.item() == pytest.approx(2 * 4 - 1.6 * 4)
    assert report[group.name]["ridge"] == 0.25
    assert report[group.name]["error_before"] == pytest.approx(4 * 17)
    assert report[group.name]["error_after"] == pytest.approx(0.16)  # variance of (2 - 1.6) x


@pytest.mark.parametrize("method", ["fold", "least_squares"])
def test_a_second_time_changes_nothing(method: str):
    group, net = linear_group(4, 2), linear_net(8)
    rows, plan = random_rows(60, 8), PruningPlan({group.name: (0, 1, 3)})
    run(net, group, plan, rows, method)
    once = [parameter.detach().clone() for parameter in net.parameters()]
    run(net, group, plan, rows, method)
    for before, after in zip(once, net.parameters(), strict=True):
        torch.testing.assert_close(before, after.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("u", [1, 3])
def test_least_squares_is_lstsq_on_the_raw_rows(u: int):
    units, width = 6, 6 * u
    group, net, rows = linear_group(units, u), linear_net(width), random_rows(200, width)
    plan = PruningPlan({group.name: (0, 2, 5)})
    target = net.m.out(rows).detach()
    run(net, group, plan, rows, "least_squares", ridge=0.0)
    gone = removed_columns(group, plan, width)
    kept = torch.tensor([p for p in range(width) if p not in gone.tolist()])
    design = torch.cat([rows[:, kept], torch.ones(200, 1, dtype=torch.float64)], 1)
    solution = torch.linalg.lstsq(design, target).solution  # (K + 1, C)
    torch.testing.assert_close(net.m.out.weight[:, kept].detach(), solution[:-1].T, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(net.m.out.bias.detach(), solution[-1], rtol=1e-7, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    units=st.integers(2, 6),
    u=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    data=st.data(),
    bias=st.booleans(),
)
def test_each_method_leaves_less_error_than_the_one_before(
    units: int, u: int, seed: int, data: st.DataObject, bias: bool
):
    kept = tuple(sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1, max_size=units - 1))))
    group, rows = linear_group(units, u), random_rows(50, units * u, seed)
    plan = PruningPlan({group.name: kept})
    dense = linear_net(units * u, bias=bias)
    target = dense.m.out(rows).detach()
    errors = {}
    for method in ("none", "fold", "least_squares"):
        net = copy.deepcopy(dense)
        report = run(net, group, plan, rows, method)
        errors[method] = float((masked(net, group, plan, rows) - target).square().sum(1).mean())
        if method != "none":  # what is reported is what happens
            assert report[group.name]["error_after"] == pytest.approx(errors[method], rel=1e-6, abs=1e-9)
            assert report[group.name]["error_before"] == pytest.approx(errors["none"], rel=1e-6)
    assert errors["least_squares"] <= errors["fold"] * (1 + 1e-9)
    assert errors["fold"] <= errors["none"] * (1 + 1e-9)


@pytest.mark.parametrize("method", ["none", "fold", "least_squares"])
def test_nothing_removed_changes_not_a_bit(method: str):
    group, net = linear_group(4, 2), linear_net(8, bias=False, dtype=torch.bfloat16)
    before = net.m.out.weight.detach().clone()
    for plan in (PruningPlan(), PruningPlan({group.name: (0, 1, 2, 3)})):
        assert run(net, group, plan, random_rows(30, 8), method) == {}
        assert torch.equal(net.m.out.weight, before)
        assert net.m.out.bias is None


@pytest.mark.parametrize("method", ["fold", "least_squares"])
def test_a_missing_bias_is_made_and_the_dtype_kept(method: str):
    group, net = linear_group(4, 2), linear_net(8, bias=False, dtype=torch.bfloat16)
    rows, plan = random_rows(60, 8), PruningPlan({group.name: (0, 1, 3)})
    target = rows @ net.m.out.weight.detach().double().T
    net.requires_grad_(False)
    report = run(net, group, plan, rows, method)
    assert net.m.out.weight.dtype == net.m.out.bias.dtype == torch.bfloat16
    assert not net.m.out.bias.requires_grad
    assert "m.out.bias" in dict(net.named_parameters())
    assert not net.m.out.weight[:, 4:6].any()  # the cut drops them
    error = float((masked(net.double(), group, plan, rows) - target).square().sum(1).mean())
    assert error == pytest.approx(report[group.name]["error_after"], rel=0.1)  # bf16 rounding
    assert error < report[group.name]["error_before"]


@pytest.mark.parametrize("method", ["fold", "least_squares"])
def test_convolution_columns_are_unfolded(method: str):
    torch.manual_seed(0)
    net = Net(nn.Conv2d(4, 3, 3, bias=False, dtype=torch.float64))
    group = linear_group(2, 2, kind="resnet_channels")
    images = torch.randn(8, 4, 6, 6, dtype=torch.float64)
    images[:, 2:] += images[:, :2] + 3
    dense = net.m.out(images).detach()
    rows = F.unfold(images, 3).transpose(1, 2).flatten(0, 1)  # (N, C k k), channel-major
    plan = PruningPlan({group.name: (0,)})
    report = run(net, group, plan, rows, method)
    with torch.no_grad():
        net.m.out.weight[:, 2:] = 0
    error = float((net.m.out(images).detach() - dense).square().sum(1).mean())
    assert error == pytest.approx(report[group.name]["error_after"], rel=1e-6)
    assert report[group.name]["error_removed"] > 0.3


def test_constant_inputs_fold_exactly():
    group, net = linear_group(3, 2), linear_net(6)
    rows = random_rows(40, 6)
    rows[:, 2:4] = torch.tensor([0.7, -3.0], dtype=torch.float64)
    plan = PruningPlan({group.name: (0, 2)})
    target = net.m.out(rows).detach()
    for method in ("fold", "least_squares"):
        edited = copy.deepcopy(net)
        report = run(edited, group, plan, rows, method)
        torch.testing.assert_close(masked(edited, group, plan, rows), target, rtol=0, atol=1e-9)
        assert report[group.name]["error_removed"] == pytest.approx(1)


def test_a_head_that_rests_on_the_first_text_token_is_removed_without_a_trace():
    """First principles (docs/scores.md section 4): BOS has the same key and value for every prompt."""
    torch.manual_seed(0)
    heads, head_dim, width, tokens = 3, 4, 12, 5
    to_q, to_k, to_v = (nn.Linear(width, heads * head_dim, bias=False) for _ in range(3))
    net = Net(nn.Linear(heads * head_dim, width))
    with (
        torch.no_grad()
    ):  # head 1 sees every query alike, and its key is large where channel 0 is: at BOS only
        to_q.weight[head_dim : 2 * head_dim] = 0
        to_q.bias = nn.Parameter(torch.zeros(heads * head_dim))
        to_q.bias[head_dim : 2 * head_dim] = 10
        to_k.weight[head_dim : 2 * head_dim] = 0
        to_k.weight[head_dim : 2 * head_dim, 0] = 10
    bos = torch.zeros(width)
    bos[0] = 3

    def rows_of(image: Tensor) -> Tensor:
        words = torch.randn(len(image), tokens - 1, width) * torch.cat(
            [torch.zeros(1), torch.ones(width - 1)]
        )
        text = torch.cat([bos.expand(len(image), 1, width), words], 1)
        q, k, v = (
            layer(x).unflatten(2, (heads, head_dim)).transpose(1, 2)
            for layer, x in ((to_q, image), (to_k, text), (to_v, text))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, H d)

    with torch.no_grad():
        group = linear_group(heads, head_dim)
        plan = PruningPlan({group.name: (0, 2)})
        seen, unseen = rows_of(torch.randn(16, 9, width)), rows_of(torch.randn(16, 9, width))
        target = net.m.out(unseen)
        before = (masked(net, group, plan, unseen) - target).abs().max()
        run(net, group, plan, seen.flatten(0, 1), "fold")
        after = (masked(net, group, plan, unseen) - target).abs().max()
    assert before > 0.1
    assert after < 1e-5


def test_two_groups_share_one_consumer_by_column_slices():
    torch.manual_seed(0)
    net = Net(nn.Linear(10, 3, dtype=torch.float64))
    heads = linear_group(2, 3)  # columns 0..5
    ffn = linear_group(4, 1, kind="ffn_channels", offset=6)  # columns 6..9
    rows = random_rows(100, 10)
    target = net.m.out(rows).detach()
    before = net.m.out.weight.detach().clone()
    plan = PruningPlan({heads.name: (1,), ffn.name: (0, 3)})
    stats = CalibrationStats({heads.name: sums(rows[:, :6], 2), ffn.name: sums(rows[:, 6:], 4)})
    report = compensate(net, [heads, ffn], plan, stats, "least_squares")
    assert set(report) == {heads.name, ffn.name}
    weight = net.m.out.weight.detach()
    kept = torch.tensor([3, 4, 5, 6, 9])
    assert set(weight.abs().sum(0).nonzero().flatten().tolist()) == set(kept.tolist())
    assert not torch.isclose(weight[:, kept], before[:, kept]).any()
    output = rows[:, kept] @ weight[:, kept].T + net.m.out.bias.detach()
    plain = rows[:, kept] @ before[:, kept].T + net.m.out.bias.detach()
    assert (output - target).square().mean() < 0.5 * (plain - target).square().mean()
    torch.testing.assert_close(output.mean(0), target.mean(0))  # both means are folded


def test_groups_in_removed_blocks_are_skipped():
    group, net = linear_group(4, 1), linear_net(4)
    block = PrunableGroup("m:blocks", "m", "blocks", 1, 1, removal=BlockRemoval())
    before = copy.deepcopy(net.state_dict())
    plan = PruningPlan({group.name: (0, 1)}, removed_blocks=("m",))
    assert compensate(net, [group, block], plan, NOTHING, "least_squares") == {}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_missing_statistics_are_named_before_anything_is_edited():
    first, second = linear_group(2, 2), linear_group(2, 1, kind="ffn_channels", offset=4)
    net = linear_net(6)
    rows = random_rows(30, 6)
    stats = CalibrationStats({first.name: sums(rows[:, :4], 2), second.name: sums(rows[:, 4:], 2)})
    del stats.values[second.name]["input_moment"]
    before = copy.deepcopy(net.state_dict())
    plan = PruningPlan({first.name: (0,), second.name: (1,)})
    with pytest.raises(
        PruningError,
        match=r"'least_squares' of group 'm:ffn_channels' needs the statistic 'input_moment'.*calibrate with "
        "input_moment, input_sum, row_weight",
    ):
        compensate(net, [first, second], plan, stats, "least_squares")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_statistics_of_another_model_are_refused():
    group = linear_group(2, 2)
    with pytest.raises(
        PruningError, match=r"'input_sum' is asked for in shape \(4,\), .* gathered it in shape \(6,\)"
    ):
        run(linear_net(4), group, PruningPlan({group.name: (0,)}), random_rows(20, 6), "fold")


@pytest.mark.parametrize(("method", "name"), [("fold", "input_sum"), ("least_squares", "input_moment")])
def test_statistics_that_are_not_finite_are_refused_before_the_model_is_touched(method, name):
    group, net = linear_group(2, 2), linear_net(4)
    stats = CalibrationStats({group.name: sums(random_rows(20, 4), 2)})
    stats.values[group.name][name][..., -1] = float("nan")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PruningError, match=rf"the statistic '{name}' is not finite"):
        compensate(net, [group], PruningPlan({group.name: (0,)}), stats, method)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_groups_of_a_wider_model_are_refused():
    group = linear_group(3, 2)
    with pytest.raises(
        PruningError, match=r"feeds columns 0 to 6 of 'm\.out\.weight', whose shape is \(3, 4\)"
    ):
        run(linear_net(4), group, PruningPlan({group.name: (0,)}), random_rows(20, 6), "fold")


def test_a_consumer_without_a_bias_slot_is_refused():
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4))

    group = linear_group(2, 2)
    with pytest.raises(PruningError, match=r"Projection at 'm\.out' has no bias to fold into"):
        run(Net(Projection()), group, PruningPlan({group.name: (0,)}), random_rows(20, 4), "fold")


def test_bad_arguments_are_refused():
    group, net = linear_group(2, 2), linear_net(4)
    with pytest.raises(PruningError, match="unknown compensation 'x'"):
        compensate(net, [group], PruningPlan(), NOTHING, "x")
    with pytest.raises(PruningError, match=r"ridge is -1\.0; it must be at least 0"):
        compensate(net, [group], PruningPlan(), NOTHING, "fold", ridge=-1.0)
    with pytest.raises(PruningError, match="plan keeps units of 'other'"):
        compensate(net, [group], PruningPlan({"other": (0,)}), NOTHING, "fold")


def test_a_singular_covariance_raises_the_ridge_aloud(caplog: pytest.LogCaptureFixture):
    # Units 0 and 1 are one and the same, so that without a ridge the kept columns cannot be told apart.
    group, net = linear_group(3, 1), linear_net(3)
    x = torch.tensor([1.0, -1, 2, -2]).double()
    rows = torch.stack([x, x, torch.tensor([1.0, 1, -1, -1]).double()], 1)
    target = net.m.out(rows).detach()
    plan = PruningPlan({group.name: (0, 1)})
    with caplog.at_level(logging.WARNING):
        report = run(net, group, plan, rows, "least_squares", ridge=0.0)
    assert (
        "group 'm:attention_heads': the covariance is singular with ridge 0; raised to 1e-08" in caplog.text
    )
    assert report[group.name]["ridge"] == 1e-8
    error = (masked(net, group, plan, rows) - target).square().sum(1).mean()
    assert float(error) <= report[group.name]["error_before"]


def test_kept_columns_that_never_vary_explain_nothing():
    group, net = linear_group(2, 1), linear_net(2)
    rows = torch.stack([torch.full((4,), 5.0), torch.tensor([1.0, 2, 3, 4])], 1)
    before = net.m.out.weight.detach().clone()
    bias = net.m.out.bias.detach() + 2.5 * before[:, 1]
    run(net, group, PruningPlan({group.name: (0,)}), rows, "least_squares")
    torch.testing.assert_close(net.m.out.weight[:, :1].detach(), before[:, :1], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        net.m.out.bias.detach() + net.m.out.weight[:, 0].detach() * 5, bias + 5 * before[:, 0]
    )
