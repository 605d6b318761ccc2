"""What the report stage gathers for its pictures: contributions of heads, heads worth a look, cuts by criterion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pruning.calibration.contributions import Unit, contributions
from pruning.groups import find_groups
from pruning.importance.base import consumer_columns
from pruning.models.families import denoise
from pruning.stages.criteria import (
    BLOCKS_ONLY,
    NO_WEIGHTS,
    NOT_GATHERED,
    TOO_SLOW,
    reason_against,
    shares_cut,
    with_squares,
)
from pruning.stages.grids import image_grid
from pruning.stages.heads import choose_heads
from pruning.types import CalibrationStats, PruningError, PruningPlan
from tests.models import dit, unet2d
from tests.unit.calibration_setup import BUCKETS, noised

WHEN: dict[str, Any] = {"num_train_timesteps": 1000, "timestep_buckets": BUCKETS}


@pytest.mark.parametrize("build", [dit, unet2d])
def test_contributions_are_those_of_a_dense_computation(build: Any) -> None:
    model = build()
    group = next(g for g in find_groups(model, ["attention_heads"]) if g.num_units > 1)
    columns = consumer_columns(group, dict(model.named_parameters())).unflatten(1, (group.num_units, -1))
    mean = torch.linspace(-1, 1, columns.shape[2]).double()
    units = [Unit(group, index, columns[:, index], mean) for index in (0, 1)]
    found = contributions(model, units, noised(model, 1)(), **WHEN)
    layer = model.get_submodule(group.consumer_weight.removesuffix(".weight"))
    rows: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].detach().double()))
    with torch.no_grad():
        for batch in noised(model, 1)():
            denoise(model, batch.call)
    handle.remove()
    for unit, one in zip(units, found, strict=True):
        x = torch.stack(rows)[:, 0].unflatten(2, (group.num_units, -1))[:, :, unit.index]  # (T, N, u)
        assert torch.allclose(one.before, (x @ unit.columns.T).norm(dim=2), rtol=1e-5)
        assert torch.allclose(one.after, ((x - mean) @ unit.columns.T).norm(dim=2), rtol=1e-5)
        assert one.folded == pytest.approx(float((unit.columns @ mean).norm()))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_every_timestep_has_to_be_shown() -> None:
    model = dit()
    group = find_groups(model, ["attention_heads"])[0]
    columns = consumer_columns(group, dict(model.named_parameters())).unflatten(1, (group.num_units, -1))
    unit = Unit(group, 0, columns[:, 0], torch.zeros(columns.shape[2]).double())
    batches = [batch for batch in noised(model, 1)() if batch.bucket != 2]
    with pytest.raises(PruningError, match="no rows entered its consumer at timestep bucket 2"):
        contributions(model, [unit], batches, **WHEN)


def head(name: str, ratio: float, *, kept: bool = True, energy: float = 0.25) -> dict[str, Any]:
    return {"group": "g", "head": name, "fluctuation_ratio": ratio, "kept": kept, "energy_share": energy}


def test_constant_heads_that_carry_output_are_shown_pruned_ones_first() -> None:
    rows = [
        head("a", 0.3),
        head("b", 0.2, kept=False),
        head("c", 0.1),
        head("silent", 0.0, energy=0.001),
        head("d", 0.9),
    ]
    assert [row["head"] for row in choose_heads(rows)] == ["c", "b", "d"]
    assert choose_heads([]) == []
    assert [row["head"] for row in choose_heads([head("only", 0.5)])] == ["only"]


def test_shares_cut_counts_units_and_removed_blocks() -> None:
    model = dit()
    groups = find_groups(model, ["attention_heads", "ffn_channels"])
    first, last = groups[0], groups[-1]
    plan = PruningPlan({first.name: (0,)}, removed_blocks=(last.module.rsplit(".", 1)[0],))
    shares = shares_cut(plan, groups)
    assert shares[0] == pytest.approx(1 - 1 / first.num_units)
    assert shares[-1] == 1.0


def test_reasons_against_a_criterion() -> None:
    model = dit()
    groups, weights = find_groups(model, ["ffn_channels"]), dict(model.named_parameters())
    stats = CalibrationStats(meta={"needs": ["input_moment", "input_sum", "row_weight"], "variants": []})
    assert reason_against("magnitude", groups, weights, stats) is None
    assert reason_against("obs", groups, weights, stats) is None
    assert reason_against("taylor", groups, weights, stats) == NOT_GATHERED
    assert reason_against("block_change", groups, weights, stats) == BLOCKS_ONLY
    assert reason_against("sink_influence", groups, weights, stats) == NO_WEIGHTS
    big = dit(num_attention_heads=4, attention_head_dim=96)
    wide, heavy = find_groups(big, ["ffn_channels"]), dict(big.named_parameters())
    assert reason_against("obs", wide, heavy, stats) == TOO_SLOW
    assert reason_against("magnitude", wide, heavy, stats) is None


def test_squares_are_the_diagonal_of_the_units_moments() -> None:
    moment = torch.arange(8.0).view(2, 2, 2)
    stats = CalibrationStats({"g": {"input_unit_moment": moment}}, {"needs": ["input_unit_moment"]})
    found = with_squares(stats)
    assert found.values["g"]["input_sq"].tolist() == [0, 3, 4, 7]
    assert "input_sq" in found.meta["needs"]
    assert "input_sq" not in stats.values["g"]


def test_tokens_lie_in_a_grid_of_the_images_shape() -> None:
    class Shown:
        meta = dit()

    assert image_grid(Shown(), 16) == [4, 4]  # type: ignore[arg-type]
    assert image_grid(Shown(), 15) is None  # type: ignore[arg-type]
