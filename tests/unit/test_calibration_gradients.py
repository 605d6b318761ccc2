"""Gradient and block statistics against derivatives and removals that the test makes itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pruning.calibration import Calibrator, calibrate, first_pass
from pruning.calibration.draws import random_signs
from pruning.calibration.seeing import Change
from pruning.calibration.statistics.blocks import block_change, block_cosine
from pruning.calibration.step import MAX_BRANCHES, timestep_weights
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.models.families import denoise
from pruning.surgery import mask_plan
from pruning.types import PrunableGroup, PruningPlan
from tests.models import dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, held, noised, settings

GRADIENTS = ("taylor", "probe_diag")
SAMPLES = 3
CASES = [
    (dit, "transformer_blocks.1.attn1:attention_heads"),
    (dit, "transformer_blocks.2.ff:ffn_channels"),
    (unet2d, "mid_block.resnets.0:resnet_channels"),
    (unet2d_condition, "down_blocks.0.attentions.0.transformer_blocks.0.attn2:attention_heads"),
]


def gather(model: nn.Module, groups: list[PrunableGroup], needs: tuple[str, ...] = GRADIENTS, **values):
    batch_size = values.pop("batch_size", SAMPLES)
    return calibrate(model, groups, noised(model, SAMPLES, batch_size), needs=needs, **values)


def effects(model: nn.Module, group: PrunableGroup, mean: Tensor | None) -> list[Tensor]:
    """Return z (B, G) of each batch as the derivative by a gate a unit: x -> mu + gate (x - mu).

    With `mean` the loss is the output's projection on random signs, without the error to the target.
    """
    found: list[Tensor] = []
    gates: list[Tensor] = []
    size = group.consumed_by[0].unit_size

    def gate(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0]
        wide = gates[-1].repeat_interleave(size, 1)  # (B, C)
        is_image = isinstance(module, nn.Conv2d)
        wide = wide[:, :, None, None] if is_image else wide[:, None]
        mu = torch.zeros(wide.shape[1] if is_image else wide.shape[2]) if mean is None else mean.float()
        mu = mu[None, :, None, None] if is_image else mu[None, None]
        return (mu + wide * (x - mu),)

    handle = model.get_submodule(group.consumer).register_forward_pre_hook(gate)
    for batch in noised(model, SAMPLES, SAMPLES):
        gates.append(torch.ones(SAMPLES, group.num_units, requires_grad=True))
        output = denoise(model, batch.call)
        if mean is None:
            loss = (output - batch.target).square().flatten(1).mean(1).sum()
        else:
            keys = [int(s) * MAX_BRANCHES for s in batch.sample_ids]
            signs = random_signs(0, keys, batch.timesteps.tolist(), output.shape[1:])
            loss = (output * signs).sum()
        found.append(torch.autograd.grad(loss, gates[-1])[0].double())
    handle.remove()
    return found


@pytest.mark.parametrize(("make", "name"), CASES)
def test_effects_are_derivatives_by_a_gate(make: Callable[[], nn.Module], name: str) -> None:
    model = make()
    group = next(g for g in find_groups(model) if g.name == name)
    seen_first = first_pass(model, [group], noised(model, SAMPLES, SAMPLES))
    weighted = settings(timestep_weights="obs_diff")
    stats = gather(model, [group], first_pass=seen_first, settings=weighted).of(group)
    w = timestep_weights("obs_diff", BUCKETS)
    data, output = effects(model, group, None), effects(model, group, seen_first.means[group.consumer])
    taylor = sum(float(w[t]) * z.abs().sum(0) for t, z in enumerate(data))
    probe = sum(float(w[t]) * z.square().sum(0) for t, z in enumerate(output))
    for statistic, expected in (("taylor", taylor), ("probe_diag", probe)):
        scale = float(expected.abs().max())
        assert scale > 0
        torch.testing.assert_close(stats.get(name, statistic), expected, rtol=1e-3, atol=1e-4 * scale)
    assert float(stats.get(name, "samples").sum()) == SAMPLES * BUCKETS


def test_weighted_effects_multiply_rows_by_omega(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every key a sink and lambdas of (1, 1), omega = 1 - s is nearly one number, which scales z and z^2."""
    model = dit()
    groups = [g for g in find_groups(model) if g.name == CASES[0][1]]
    drop = settings(unstable=1.0, stable=1.0, rho=1e-6, alpha=0.1)
    stats = gather(model, groups, variants=("on", "permuted"), settings=drop).of(groups[0])
    s = 1 / (1 + 1e-6**0.1)  # r is near 1, and s hardly moves with it at this alpha
    for statistic, factor in (("taylor", 1 - s), ("probe_diag", (1 - s) ** 2)):
        plain = stats.get(groups[0].name, statistic)
        for variant in ("on", "permuted"):
            ratio = stats.get(groups[0].name, f"{statistic}@{variant}") / plain
            assert ratio.flatten().median() == pytest.approx(factor, rel=0.15)
    nothing = settings(unstable=0.0, stable=0.0, rho=1e-6)
    off = gather(model, groups, variants=("on",), settings=nothing).of(groups[0])
    for statistic in GRADIENTS:
        torch.testing.assert_close(
            off.get(groups[0].name, f"{statistic}@on"), off.get(groups[0].name, statistic)
        )


def test_gradients_do_not_depend_on_the_batch_size() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    whole, single = (gather(model, groups, batch_size=size) for size in (SAMPLES, 1))
    for name in (g.consumer for g in groups):
        for statistic in GRADIENTS:
            value = whole.get(name, statistic)
            torch.testing.assert_close(
                single.get(name, statistic), value, rtol=1e-3, atol=1e-4 * float(value.abs().max())
            )


def test_learned_variance_is_no_part_of_the_loss() -> None:
    model = dit(out_channels=2)
    stats = gather(model, find_groups(model, ["attention_heads"]))
    assert len(stats.values) == 3
    assert all(bool((v["probe_diag"] > 0).all()) for v in stats.values.values())


def test_parameters_and_modes_are_put_back() -> None:
    model = dit().train()
    model.transformer_blocks[0].eval()
    model.proj_out_1.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    gather(model, find_groups(model))
    assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == before
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        model.proj_out_2.bias[0] = torch.nan
    with pytest.raises(PruningError, match="holds NaN"):
        gather(model, find_groups(model))
    assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == before


def test_a_loss_that_is_not_finite_is_named() -> None:
    model = dit()
    batches = list(noised(model))
    batches[2].target[1] = torch.inf
    with pytest.raises(
        PruningError, match=r"data loss of calibration holds NaN .*\(sample 1, timestep bucket 2\)"
    ):
        calibrate(model, find_groups(model, ["attention_heads"]), held(batches), needs=["taylor"])


def test_gradients_need_a_first_pass_and_a_backward() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads"])
    with pytest.raises(
        PruningError, match=r"statistic 'probe_diag' at '.*' needs channel means from a first pass"
    ):
        Calibrator(model, groups, needs=["probe_diag"], num_train_timesteps=1000)
    batch = next(iter(noised(model)))
    calibrator = Calibrator(model, groups, needs=["taylor"], num_train_timesteps=1000)
    with calibrator:
        with torch.no_grad():
            output = denoise(model, batch.call)
        with pytest.raises(PruningError, match="no consumer ran with gradients enabled"):
            calibrator.driver.gradients.backward(output, batch.target, calibrator.driver.step)


@pytest.mark.parametrize("make", [dit, unet2d, unet2d_condition])
def test_block_change_is_what_surgery_would_change(make: Callable[[], nn.Module]) -> None:
    model = make()
    groups = find_groups(model, ["blocks"])
    stats = gather(model, groups, ("block_change", "block_cosine"), timestep_weights=[1.0, 2.0, 3.0, 4.0])
    for group in groups[:: max(1, len(groups) // 4)]:
        masked = mask_plan(model, PruningPlan(removed_blocks=(group.module,)), groups)
        expected = 0.0
        with torch.no_grad():
            for batch in noised(model, SAMPLES, SAMPLES):
                change = denoise(model, batch.call) - denoise(masked, batch.call)
                expected += (batch.bucket + 1) * float(change.double().square().sum())
        assert float(stats.get(group.module, "block_change")) == pytest.approx(expected, rel=1e-4)
        assert 0 < float(stats.get(group.module, "block_cosine")) < 2 * SAMPLES * BUCKETS
        assert stats.get(group.module, "samples").tolist() == [SAMPLES] * BUCKETS


def test_block_statistics_by_hand() -> None:
    before = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [2.0, 2.0]]])  # (B, N, C)
    after = torch.tensor([[[0.0, 3.0], [2.0, 0.0]], [[5.0, 5.0], [-1.0, -1.0]]])
    weight = torch.tensor([1.0, 2.0]).double()
    assert block_cosine(Change(before, after, weight)).tolist() == pytest.approx([0.5, 1.0])
    images = (tokens.transpose(1, 2).unsqueeze(-1) for tokens in (before, after))  # (B, C, H, W)
    assert block_cosine(Change(*images, weight)).tolist() == pytest.approx([0.5, 1.0])
    assert block_change(Change(before, after, weight)).tolist() == [1 + 9 + 1, 2 * (16 + 16 + 9 + 9)]
