"""Sets of blocks measured together: what surgery would change, with nothing left on the model."""

from __future__ import annotations

import math

import pytest
import torch

from pruning.calibration import OutputChange
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.models import denoise
from pruning.surgery import mask_plan
from pruning.types import PruningPlan
from tests.models import dit, run, unet2d, unet2d_condition
from tests.unit.calibration_setup import BUCKETS, held, noised
from tests.unit.test_calibration_gradients import SAMPLES, gather

WEIGHTS = [1.0, 2.0, 3.0, 4.0]


def blocks_of(model):
    return [group for group in find_groups(model) if group.kind == "blocks"]


def expected(model, blocks, removed) -> float:
    masked = mask_plan(model, PruningPlan(removed_blocks=tuple(removed)), blocks)
    total = 0.0
    with torch.no_grad():
        for batch in noised(model, SAMPLES, SAMPLES):
            change = denoise(model, batch.call) - denoise(masked, batch.call)
            total += WEIGHTS[batch.bucket] * float(change.double().square().sum())
    return total / (SAMPLES * BUCKETS)


@pytest.mark.parametrize("make", [dit, unet2d, unet2d_condition])
def test_a_set_changes_what_surgery_would_change(make):
    model = make()
    blocks = blocks_of(model)
    before, effect = run(model), OutputChange(model, blocks, noised(model, SAMPLES, 2), weights=WEIGHTS)
    paths = [block.module for block in blocks]
    for removed in (paths[:2], paths[-2:], paths[::2]):
        assert effect(removed) == pytest.approx(expected(model, blocks, removed), rel=1e-4)
    assert effect.forwards == 4 * SAMPLES * BUCKETS  # the dense model, and three sets
    assert torch.equal(run(model), before)


def test_of_a_single_block_it_is_the_criterion_and_of_two_not_the_sum():
    model = dit()
    blocks = blocks_of(model)
    stats = gather(model, blocks, ("block_change",), timestep_weights=WEIGHTS)
    effect = OutputChange(model, blocks, noised(model, SAMPLES, 3), weights=WEIGHTS)
    singles = [effect((block.module,)) for block in blocks]
    for block, change in zip(blocks, singles, strict=True):
        assert change * SAMPLES * BUCKETS == pytest.approx(float(stats.get(block.module, "block_change")))
    together = effect([block.module for block in blocks])
    assert abs(together - sum(singles)) > 0.01 * together


def test_power_is_the_mean_square_of_the_output():
    model = dit()
    effect = OutputChange(model, blocks_of(model), noised(model, SAMPLES, SAMPLES), weights=WEIGHTS)
    with torch.no_grad():
        squares = [
            WEIGHTS[batch.bucket] * float(denoise(model, batch.call).double().square().sum())
            for batch in noised(model, SAMPLES, SAMPLES)
        ]
    assert effect.power == pytest.approx(sum(squares) / (SAMPLES * BUCKETS))


def test_a_block_inside_another_adds_nothing():
    model = unet2d()
    blocks = blocks_of(model)
    inner = next(block.module for block in blocks if block.module.startswith("mid_block."))
    effect = OutputChange(model, blocks, noised(model, SAMPLES, SAMPLES))
    assert effect(["mid_block", inner]) == effect(["mid_block"])


def test_what_cannot_be_measured_is_refused():
    model = dit()
    blocks = blocks_of(model)
    with pytest.raises(PruningError, match="on no samples; give at least one"):
        OutputChange(model, blocks, held([]))
    effect = OutputChange(model, blocks, noised(model, 2, 2))
    with pytest.raises(PruningError, match=r"'transformer_blocks\.0' is not a removable block"):
        effect(["transformer_blocks.0"])
    with torch.no_grad():
        model.get_parameter("transformer_blocks.2.ff.net.2.bias").fill_(math.nan)
    with pytest.raises(PruningError, match=r"without block 'transformer_blocks\.1' holds NaN .*sample 0, 1"):
        effect(["transformer_blocks.1"])
    assert "forward" not in vars(model.get_submodule("transformer_blocks.1"))
