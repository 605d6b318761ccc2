"""Diff-Pruning: by hand, against derivatives of the test's own, and against torch-pruning where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pruning.calibration import STATISTICS, Calibrator, Observer, SamplingRun, calibrate
from pruning.calibration.seeing import Owned, WeightGradient
from pruning.calibration.seeing.weights import _Tap
from pruning.calibration.statistics.diff_pruning import THRESHOLD, diff_pruning
from pruning.calibration.step import timestep_weights
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import score
from pruning.models.families import denoise
from pruning.types import CalibrationStats, ParamSlice, PrunableGroup, slices_of
from tests.models import dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, held, noised, settings

SAMPLES = 3
NEEDS = ["diff_pruning"]


def gather(model: nn.Module, groups: list[PrunableGroup], **values) -> CalibrationStats:
    batches = values.pop("batches", None) or noised(model, SAMPLES, values.pop("batch_size", SAMPLES))
    return calibrate(model, groups, batches, needs=values.pop("needs", NEEDS), **values)


def by_definition(model: nn.Module, group: PrunableGroup, threshold: float, weights: Tensor) -> Tensor:
    """One backward pass a sample and timestep over the whole model."""
    total = {path: torch.zeros_like(p, dtype=torch.float64) for path, p in model.named_parameters()}
    for sample in range(SAMPLES):
        largest = 0.0
        for batch in noised(model, SAMPLES, 1):
            if batch.sample_ids.tolist() != [sample]:
                continue
            model.zero_grad()
            loss = (denoise(model, batch.call) - batch.target).square().mean()
            largest = max(largest, loss.item())
            if loss.item() < threshold * largest:
                break
            loss.backward()
            for path, parameter in model.named_parameters():
                if parameter.grad is not None:
                    total[path] += float(weights[batch.bucket]) * parameter.grad.double()
    model.zero_grad()
    scores = torch.zeros(group.num_units, dtype=torch.float64)
    for where in slices_of(group):
        parameter = model.get_parameter(where.path).detach()
        for unit in range(group.num_units) if parameter.ndim > 1 else ():
            rows = where.indices([unit])
            product = parameter.double() * total[where.path]
            scores[unit] += product.index_select(where.dim, rows).abs().sum()
    return scores


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (dit, "transformer_blocks.1.attn1:attention_heads"),
        (lambda: dit(activation_fn="geglu"), "transformer_blocks.2.ff:ffn_channels"),
        (unet2d, "mid_block.resnets.0:resnet_channels"),
        (unet2d_condition, "down_blocks.0.attentions.0.transformer_blocks.0.attn2:attention_heads"),
    ],
)
@pytest.mark.parametrize("threshold", [THRESHOLD, 0.95])
def test_scores_are_those_of_the_definition(
    make: Callable[[], nn.Module], name: str, threshold: float
) -> None:
    needs = {
        "diff_pruning": Observer(WeightGradient(threshold), diff_pruning, lambda at: (at.group.num_units,))
    }
    model = make()
    group = next(g for g in find_groups(model) if g.name == name)
    stats = gather(model, [group], needs=needs, settings=settings(timestep_weights="obs_diff"))
    expected = by_definition(model, group, threshold, timestep_weights("obs_diff", BUCKETS))
    assert float(expected.min()) > 0
    torch.testing.assert_close(stats.get(name, "diff_pruning"), expected, rtol=2e-3, atol=1e-6)
    scores = score({}, [group], stats, criterion="diff_pruning").values[name]
    torch.testing.assert_close(scores * SAMPLES * BUCKETS, expected, rtol=2e-3, atol=1e-6)


def test_a_units_weights_by_hand() -> None:
    # Unit 0: |1 * 2| + |-1 * 3| from its row, |2 * 1| + |0 * 9| from its column.
    # Unit 1: |2 * -1| + |0 * 5| and |3 * 1| + |1 * -4|.
    group = PrunableGroup(
        "g", "m", "ffn_channels", 2, 1,
        produced_by=(ParamSlice("up", 0, 1), ParamSlice("bias", 0, 1)), consumed_by=(ParamSlice("out", 1, 1, 1),),
    )  # fmt: skip
    weights = {"up": [[1.0, -1], [2, 0]], "out": [[9.0, 2, 3], [9, 0, 1]], "bias": [7.0, 7]}
    gradients = {"up": [[2.0, 3], [-1, 5]], "out": [[9.0, 1, 1], [9, 9, -4]], "bias": [7.0, 7]}
    tensors = (
        {path: torch.tensor(value) for path, value in by_path.items()} for by_path in (weights, gradients)
    )
    assert diff_pruning(Owned(*tensors, group)).tolist() == [2 + 3 + 2 + 0, 2 + 0 + 3 + 4]


def test_a_sample_is_done_at_the_first_small_loss() -> None:
    tap = _Tap([], {"s": STATISTICS["diff_pruning"]}, None, 0.05)  # type: ignore[arg-type]
    losses = [1.0, 4.0, 0.2, 0.199, 9.0]  # 0.05 of the largest so far is 0.05, 0.2, 0.2, 0.2
    assert [tap._counts(0, t, loss) for t, loss in enumerate(losses)] == [True, True, True, False, False]
    assert tap._counts(1, 0, 1e-9)  # another sample has its own losses


def test_signs_count_over_samples_and_timesteps() -> None:
    """Two samples whose gradients cancel leave nothing, which a sum of sizes would not."""
    model = unet2d()
    groups = find_groups(model, ["resnet_channels"])
    batch = next(iter(noised(model, 1, 1)))
    output = denoise(model, batch.call).detach()
    pair = [
        replace(batch, target=output + sign * 0.1, sample_ids=torch.tensor([i]))
        for i, sign in enumerate((1, -1))
    ]
    one, both = (gather(model, groups, batches=held(part)) for part in (pair[:1], pair))
    for group in groups:
        scale = one.get(group.name, "diff_pruning").max()
        assert both.get(group.name, "diff_pruning").max() < 1e-4 * scale


def test_results_do_not_depend_on_the_batch_size_or_on_other_statistics() -> None:
    model = dit()
    groups = find_groups(model)
    whole, single = (gather(model, groups, batch_size=size) for size in (SAMPLES, 1))
    beside = gather(model, groups, needs=["diff_pruning", "taylor", "probe_diag", "block_change"])
    alone = gather(model, groups, needs=["taylor"])
    for group in groups:
        if group.kind == "blocks":
            assert not whole.has(group.name, "diff_pruning")
            continue
        value = whole.get(group.name, "diff_pruning")
        for other in (single, beside):
            torch.testing.assert_close(other.get(group.name, "diff_pruning"), value, rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(beside.get(group.consumer, "taylor"), alone.get(group.consumer, "taylor"))


def test_memory_is_one_copy_and_everything_is_put_back() -> None:
    model = dit().to(torch.bfloat16)
    groups = find_groups(model, ["ffn_channels"])
    kept = (
        torch.ones_like(model.proj_out_1.weight),
        torch.ones_like(model.transformer_blocks[0].ff.net[2].weight),
    )
    model.proj_out_1.weight.grad, model.transformer_blocks[0].ff.net[2].weight.grad = kept
    model.transformer_blocks[1].ff.net[2].weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    calibrator = Calibrator(model, groups, needs=NEEDS, num_train_timesteps=1000, settings=settings())
    with calibrator:
        for batch in noised(model, SAMPLES):
            call = {**batch.call, "hidden_states": batch.call["hidden_states"].bfloat16()}
            gradients = calibrator.driver.gradients
            gradients.backward(denoise(model, call), batch.target, calibrator.driver.step)
            (tap,) = gradients.listeners
            assert isinstance(tap, _Tap)
            assert all(p.grad is None for p in tap.parameters.values())
            assert all(total.dtype == torch.float32 for total in tap._sums.values())
            assert sum(total.numel() for total in tap._sums.values()) == sum(
                p.numel() for p in tap.parameters.values()
            )
    assert [p.requires_grad for p in model.parameters()] == before
    assert model.proj_out_1.weight.grad is kept[0]
    assert model.transformer_blocks[0].ff.net[2].weight.grad is kept[1]
    assert all(not (p._post_accumulate_grad_hooks or {}) for p in model.parameters())


def test_mistakes_are_named() -> None:
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    batches = list(noised(model, SAMPLES))
    with pytest.raises(
        PruningError, match=r"'diff_pruning' sums over timesteps from the least noise upwards.*530 after 780"
    ):
        gather(model, groups, batches=held(batches[::-1]))
    with pytest.raises(
        PruningError, match="'diff_pruning' cannot be gathered from a run that is only watched"
    ):
        calibrate(model, groups, SamplingRun(lambda: None, 1000), needs=NEEDS)
    batches[2].target[1] = torch.inf
    with pytest.raises(
        PruningError, match=r"the data loss of calibration holds NaN .*sample 1, timestep bucket 2"
    ):
        gather(model, groups, batches=held(batches))
    assert not any(p.grad is not None for p in model.parameters())


def test_torch_pruning_ranks_resnet_channels_alike() -> None:
    """Driven as the paper describes: ``loss.backward()`` over t, then TaylorImportance of every coupled group."""
    tp = pytest.importorskip("torch_pruning")
    model = unet2d()
    groups = find_groups(model, ["resnet_channels"])
    ours = gather(model, groups, batches=noised(model, 1, 1))
    batches = list(noised(model, 1, 1))
    graph = tp.DependencyGraph().build_dependency(model, batches[0].call)
    model.zero_grad()
    largest = 0.0
    for batch in batches:
        loss = (denoise(model, batch.call) - batch.target).square().mean()
        largest = max(largest, loss.item())
        if loss.item() < THRESHOLD * largest:
            break
        loss.backward()
    importance = tp.importance.TaylorImportance(multivariable=False, normalizer=None)
    for group in groups:
        conv = model.get_submodule(f"{group.module}.conv1")
        coupled = graph.get_pruning_group(conv, tp.prune_conv_out_channels, list(range(conv.out_channels)))
        theirs = importance(coupled).double().unflatten(0, (group.num_units, -1)).sum(1)
        mine = ours.get(group.name, "diff_pruning")
        torch.testing.assert_close(mine / mine.mean(), theirs / theirs.mean(), rtol=1e-4, atol=0)
