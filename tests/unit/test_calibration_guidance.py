"""Rows of paired guidance branches, mixed before they are summed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pruning.calibration import Calibrator, Guidance
from pruning.calibration.step import Step
from pruning.errors import PruningError
from pruning.groups import find_groups
from pruning.importance import score
from tests.models import call, dit, unet2d
from tests.unit.test_calibration_moments import NEEDS, direct

SETTINGS = {"needs": NEEDS, "num_train_timesteps": 1000, "timestep_buckets": 2}


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
    mixed, one, owner = Guidance(3.0).mix(x, step, torch.arange(4), "here")
    assert mixed.flatten().tolist() == [-2 * 1 + 3 * 10, -2 * 2 + 3 * 20]
    assert (one.samples, one.keys, one.buckets.tolist(), owner.tolist()) == ((4, 5), (32, 40), [0, 1], [0, 1])
    assert Guidance(3.0, conditional=0).mix(x, step, torch.arange(4), "here")[0].flatten().tolist() == [
        -17,
        -34,
    ]
    wide, _, owner = Guidance(3.0).mix(
        x.repeat_interleave(2, 0), step, torch.arange(4).repeat_interleave(2), "here"
    )
    assert wide.flatten().tolist() == [28, 28, 56, 56]
    assert owner.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("model", [dit(), unet2d(num_class_embeds=5)], ids=["dit", "unet"])
def test_guided_sums_are_those_of_the_mixed_rows(model: nn.Module) -> None:
    groups = find_groups(model, ["attention_heads", "ffn_channels", "resnet_channels"])
    name = "hidden_states" if "hidden_states" in call(model) else "sample"
    one = {**call(model, 2), "timestep": torch.tensor([100, 700])}
    other = {**one, "class_labels": (one["class_labels"] + 1) % 5}
    both = {key: torch.cat([one[key], other[key]]) for key in one}
    calibrator = Calibrator(model, groups, variants=["guided"], guidance=Guidance(2.5), **SETTINGS)
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(g.consumer).register_forward_pre_hook(
            lambda m, a, n=g.name: inputs.update({n: a[0]})
        )
        for g in groups
    ]
    with torch.no_grad(), calibrator as stats:
        calibrator.identify([0, 1])
        model(**both)
    for handle in handles:
        handle.remove()
    assert both[name].shape[0] == 4
    for group in groups:
        unconditional, conditional = inputs[group.name].chunk(2)
        consumer = calibrator._wiring.consumers[group.name]
        ((_, rows),) = consumer.rows(-1.5 * unconditional + 2.5 * conditional)
        by_bucket = [rows[i : i + 1].double() for i in range(2)]  # timesteps 100 and 700
        ones = [torch.ones(r.shape[:2]).double() for r in by_bucket]
        for statistic, expected in direct(by_bucket, ones, group.num_units).items():
            got = stats.get(group.name, f"{statistic}@guided")
            torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)
        assert float(stats.get(group.name, "row_weight").sum()) == 2 * float(
            stats.get(group.name, "row_weight@guided").sum()
        )
    weights = dict(model.named_parameters())
    guided = score(weights, groups, stats, criterion="energy", omega="guided")
    assert guided.meta["omega_groups"] == len(groups)


def test_mistakes_are_named() -> None:
    model = dit()
    groups = find_groups(model, ["ffn_channels"])
    with pytest.raises(
        PruningError, match=r"'guided' mixes both branches of guidance; give guidance=Guidance\(scale\)"
    ):
        Calibrator(model, groups, variants=["guided"], **SETTINGS)
    with pytest.raises(PruningError, match="guidance: conditional is 2; it must be 0 or 1"):
        Calibrator(model, groups, variants=["guided"], guidance=Guidance(2.0, 2), **SETTINGS)
    with pytest.raises(PruningError, match="guidance: scale is nan"):
        Calibrator(model, groups, variants=["guided"], guidance=Guidance(float("nan")), **SETTINGS)
    calibrator = Calibrator(model, groups, variants=["guided"], guidance=Guidance(2.0), **SETTINGS)
    with torch.no_grad(), calibrator:
        calibrator.identify([0, 1])
        with pytest.raises(PruningError, match=r"holds 1 branch\(es\); generate with guidance"):
            model(**call(model, 2))
