"""Sensitivity of the model's output to a consumer's output, against derivatives of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pruning.calibration import SamplingRun, calibrate, needs_first_pass
from pruning.calibration.draws import random_signs
from pruning.calibration.rows import Consumer
from pruning.calibration.seeing import Rows
from pruning.calibration.statistics.sensitivity import output_sensitivity
from pruning.calibration.step import MAX_BRANCHES, timestep_weights
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.models.families import denoise
from pruning.types import CalibrationStats, PrunableGroup
from tests.models import dit, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, noised, settings, whole

SAMPLES = 3
NEEDS = ["output_sensitivity"]


def gather(model: nn.Module, groups: list[PrunableGroup], **values) -> CalibrationStats:
    batches = noised(model, SAMPLES, values.pop("batch_size", SAMPLES))
    return calibrate(model, groups, batches, **{"needs": NEEDS, **values})


def by_definition(model: nn.Module, group: PrunableGroup, weights: Tensor) -> Tensor:
    """Add a variable to the consumer's output and differentiate by it."""
    total, added = torch.zeros(()), []

    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        added.append(torch.zeros_like(output, requires_grad=True))
        return output + added[-1]

    handle = model.get_submodule(group.consumer).register_forward_hook(add)
    for batch in noised(model, SAMPLES, SAMPLES):
        output = denoise(model, batch.call)
        keys = [int(s) * MAX_BRANCHES for s in batch.sample_ids]
        signs = random_signs(0, keys, batch.timesteps.tolist(), output.shape[1:])
        (q,) = torch.autograd.grad((output * signs).sum(), added[-1])
        rows = (q.flatten(2).transpose(1, 2) if q.ndim == 4 else q).flatten(0, 1).double()
        total = total + weights[batch.bucket] * rows.T @ rows
    handle.remove()
    return total


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (dit, "transformer_blocks.1.attn1:attention_heads"),
        (lambda: dit(out_channels=2), "transformer_blocks.2.ff:ffn_channels"),
        (unet2d, "mid_block.resnets.0:resnet_channels"),
        (unet2d_condition, "down_blocks.0.attentions.0.transformer_blocks.0.attn2:attention_heads"),
    ],
)
def test_sensitivity_is_that_of_the_definition(make: Callable[[], nn.Module], name: str) -> None:
    model = make()
    group = next(g for g in find_groups(model) if g.name == name)
    stats = gather(model, [group], settings=settings(timestep_weights="obs_diff"))
    got = stats.get(group.consumer, "output_sensitivity")
    expected = by_definition(model, group, timestep_weights("obs_diff", BUCKETS))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.trace()) > 0


def test_by_hand() -> None:
    q = torch.tensor([[1.0, 2], [3, 0]])
    place = Consumer("out", "out", nn.Linear(1, 2), 0, 1, 1, 2)
    found = output_sensitivity(Rows(q, torch.tensor([1.0, 2.0]), place))
    assert whole(found).tolist() == [[1 + 18, 2], [2, 4]]


def test_it_does_not_depend_on_batches_or_on_other_statistics() -> None:
    model = unet2d_condition()
    groups = find_groups(model, ["attention_heads", "ffn_channels", "resnet_channels"])
    whole, single = (gather(model, groups, batch_size=size) for size in (SAMPLES, 1))
    more = [*NEEDS, "taylor", "probe_diag", "diff_pruning", "input_sq"]
    beside = gather(model, groups, needs=more, settings=settings(rows=4))
    for group in groups:
        value = whole.get(group.consumer, "output_sensitivity")
        assert value.dtype == torch.float64
        for other in (single, beside):
            got = other.get(group.consumer, "output_sensitivity")
            torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-5 * float(value.abs().max()))


def test_it_needs_backward_passes_but_no_first_pass() -> None:
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    assert not needs_first_pass(NEEDS, ())
    with pytest.raises(
        PruningError, match="'output_sensitivity' cannot be gathered from a run that is only watched"
    ):
        calibrate(model, groups, SamplingRun(lambda: None, 1000), needs=NEEDS)
