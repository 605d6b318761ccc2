"""Rows of paired guidance branches, mixed before they are summed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning.calibration import Calibrator
from pruning.calibration.guidance import mixed
from pruning.calibration.rows import Consumer
from pruning.calibration.step import Step
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import score
from pruning.settings import Calibrate
from tests.models import call, dit, unet2d
from tests.unit.test_calibration_moments import NEEDS, direct


def calibrator(model: nn.Module, kinds: list[str], scale: float, **more) -> Calibrator:
    settings = Calibrate(timestep_buckets=2, guidance_scale=scale)
    values = {"needs": NEEDS, "num_train_timesteps": 1000, "variants": ["guided"], "settings": settings}
    return Calibrator(model, find_groups(model, kinds), **{**values, **more})


def test_mixing_by_hand() -> None:
    # 2 samples x 2 branches, the conditional half first or last, scale 3: -2 unconditional + 3 conditional.
    step = Step(
        (4, 5, 4, 5),
        (32, 40, 33, 41),
        torch.arange(4).double(),
        torch.tensor([0, 1, 0, 1]),
        torch.ones(4).double(),
    )
    x = torch.tensor([[1.0], [2], [10], [20]])
    rows = torch.arange(4)
    both, one, row_of = mixed(x, step, rows, "here", scale=3.0, conditional=1)
    assert both.flatten().tolist() == [-2 * 1 + 3 * 10, -2 * 2 + 3 * 20]
    assert (one.samples, one.keys, one.buckets.tolist()) == ((4, 5), (32, 40), [0, 1])
    assert row_of.tolist() == [0, 1]
    other = mixed(x, step, rows, "here", scale=3.0, conditional=0)[0]
    assert other.flatten().tolist() == [-17, -34]
    wide, _, row_of = mixed(
        x.repeat_interleave(2, 0), step, rows.repeat_interleave(2), "here", scale=3.0, conditional=1
    )
    assert wide.flatten().tolist() == [28, 28, 56, 56]
    assert row_of.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("model", [dit(), unet2d(num_class_embeds=5)], ids=["dit", "unet"])
def test_guided_sums_are_those_of_the_mixed_rows(model: nn.Module) -> None:
    kinds = ["attention_heads", "ffn_channels", "resnet_channels"]
    groups = find_groups(model, kinds)
    name = "hidden_states" if "hidden_states" in call(model) else "sample"
    one = {**call(model, 2), "timestep": torch.tensor([100, 700])}
    other = {**one, "class_labels": (one["class_labels"] + 1) % 5}
    both = {key: torch.cat([one[key], other[key]]) for key in one}
    measuring = calibrator(model, kinds, 2.5)
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(g.consumer).register_forward_pre_hook(
            lambda m, a, n=g.name: inputs.update({n: a[0]})
        )
        for g in groups
    ]
    with torch.no_grad(), measuring as stats:
        measuring.identify([0, 1])
        model(**both)
    for handle in handles:
        handle.remove()
    assert both[name].shape[0] == 4
    for group in groups:
        unconditional, conditional = inputs[group.name].chunk(2)
        ((_, rows),) = Consumer.of(model, group).rows(-1.5 * unconditional + 2.5 * conditional)
        by_bucket = [rows[i : i + 1].double() for i in range(2)]  # timesteps 100 and 700
        ones = [torch.ones(r.shape[:2]).double() for r in by_bucket]
        for statistic, expected in direct(by_bucket, ones, group.num_units).items():
            got = stats.get(group.consumer, f"{statistic}@guided")
            torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)
        assert float(stats.get(group.consumer, "row_weight").sum()) == 2 * float(
            stats.get(group.consumer, "row_weight@guided").sum()
        )
    guided = score(model, groups, stats, criterion="energy", weighting="guided")
    assert guided.meta["weighted_groups"] == len(groups)


def test_mistakes_are_named() -> None:
    model, kinds = dit(), ["ffn_channels"]
    with pytest.raises(
        PruningError,
        match=r"'guided' mixes both branches of guidance; say how in settings\.guidance_scale, which is 1",
    ):
        calibrator(model, kinds, 1.0)
    with pytest.raises(PruningError, match="conditional is 2; it must be 0 or 1"):
        calibrator(model, kinds, 2.0, conditional=2)
    with pytest.raises(PruningError, match="calibration: guidance_scale: nan must be a finite number"):
        calibrator(model, kinds, float("nan"))
    measuring = calibrator(model, kinds, 2.0)
    with torch.no_grad(), measuring:
        measuring.identify([0, 1])
        with pytest.raises(PruningError, match=r"holds 1 branch\(es\); generate with guidance"):
            model(**call(model, 2))
