"""Every criterion against a case worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.importance import score
from pruning.types import CalibrationStats, ParamSlice, PrunableGroup
from tests.unit.importance_rows import linear_group, stats_of, sums

# Two heads of two channels. The four rows, worked with by hand below:
#   head 0: (1, 0) (3, 0) (1, 2) (3, 2)   mean (2, 1), E x^2 = (5, 2), covariance diag(1, 1)
#   head 1: (2, 1) (2, 1) (2, 1) (2, 1)   constant: E x^2 = (4, 1), covariance 0
ROWS = torch.tensor([[1.0, 0, 2, 1], [3, 0, 2, 1], [1, 2, 2, 1], [3, 2, 2, 1]])
OUT = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, 0]])
WEIGHTS = {"m.out.weight": OUT, "m.up.weight": torch.tensor([[3.0], [0], [0], [4]])}
HEADS = linear_group(2, 2)
NOTHING = CalibrationStats()


def scored(
    criterion: str, stats: CalibrationStats, group: PrunableGroup = HEADS, **more: object
) -> list[float]:
    weights = more.pop("weights", WEIGHTS)
    assert isinstance(weights, dict)
    return score(weights, [group], stats, criterion=criterion, **more).values[group.name].tolist()  # type: ignore[arg-type]


def site(**statistics: Tensor) -> CalibrationStats:
    return CalibrationStats({HEADS.name: {"samples": torch.tensor([3.0, 1.0]).double(), **statistics}})


def test_magnitude_is_the_norm_of_all_slices():
    # unit 0: produced 3^2, consumed 1 + 4 + 0 + 1; unit 1: produced 4^2, consumed 0 + 1 + 9 + 0
    assert scored("magnitude", NOTHING) == pytest.approx([15**0.5, 26**0.5])


def test_magnitude_counts_biases_and_fused_slices():
    # One fused parameter holds gate and value rows, as GEGLU does; columns of a 1x2 kernel are summed too.
    group = PrunableGroup(
        "f:ffn_channels",
        "f",
        "ffn_channels",
        num_units=2,
        unit_size=1,
        produced_by=(
            ParamSlice("f.in.weight", 0, 1),
            ParamSlice("f.in.weight", 0, 1, offset=2),
            ParamSlice("f.in.bias", 0, 1, offset=2),
        ),
        consumed_by=(ParamSlice("f.out.weight", 1, 1),),
    )
    weights = {
        "f.in.weight": torch.tensor([[1.0], [2], [3], [4]]),
        "f.in.bias": torch.tensor([9.0, 9, 5, 6]),
        "f.out.weight": torch.tensor([[[[7.0, 1]], [[8, 2]]]]),
    }
    expected = [(1 + 9 + 25 + 49 + 1) ** 0.5, (4 + 16 + 36 + 64 + 4) ** 0.5]
    assert score(weights, [group], NOTHING, criterion="magnitude").values[
        group.name
    ].tolist() == pytest.approx(expected)


def test_magnitude_of_a_block_is_the_norm_of_its_parameters():
    block = PrunableGroup("b.1:blocks", "b.1", "blocks", num_units=1, unit_size=1)
    weights = {
        "b.1.a": torch.tensor([[3.0]]),
        "b.1.c.d": torch.tensor([4.0]),
        "b.10.a": torch.tensor([100.0]),
    }
    assert scored("magnitude", NOTHING, block, weights=weights) == pytest.approx([5.0])
    with pytest.raises(PruningError, match=r"the weights hold no parameter below 'b\.1'"):
        scored("magnitude", NOTHING, block, weights={"b.10.a": torch.ones(1)})


def test_wanda_weighs_columns_by_their_mean_square():
    # column norms^2: 1, 5, 9, 1; E x^2: 5, 2, 4, 1
    assert scored("wanda", stats_of(HEADS, ROWS)) == pytest.approx([1 * 5 + 5 * 2, 9 * 4 + 1 * 1])


def test_energy_is_the_mean_squared_output():
    # head 0 puts out (x0 + 2 x1, x1): rows (1,0) (3,0) (5,2) (7,2), mean of squares (1 + 9 + 29 + 53) / 4 = 23
    # head 1 puts out (1, 6) always: 37
    assert scored("energy", stats_of(HEADS, ROWS)) == pytest.approx([23, 37])


def test_fluctuation_is_the_variance_of_the_output():
    # head 0: variance of x0 + 2 x1 is 1 + 4, of x1 is 1; head 1 is constant
    assert scored("fluctuation", stats_of(HEADS, ROWS)) == pytest.approx([6, 0])


def test_row_weights_count():
    # Rows 0 and 1 weigh 1, the others 0: head 0 puts out (1,0) and (3,0)
    stats = stats_of(HEADS, ROWS, torch.tensor([1.0, 1, 0, 0]))
    assert scored("energy", stats) == pytest.approx([5, 37])
    assert scored("fluctuation", stats) == pytest.approx([1, 0])
    assert scored("wanda", stats) == pytest.approx([5, 37])


def test_convolution_columns_are_unfolded_channel_major():
    # Two channels, 1x2 kernels: columns are (channel 0, tap 0), (0, 1), (1, 0), (1, 1) with weights 1 2 3 4.
    group = linear_group(2, 1, kind="resnet_channels")
    weights = {"m.out.weight": torch.tensor([[[[1.0, 2]], [[3, 4]]]])}
    rows = torch.tensor([[1.0, 1, 0, 1], [1, -1, 0, 1]])
    # channel 0 puts out 3 and -1: mean 1, mean square 5, variance 4; channel 1 puts out 4 always
    stats = stats_of(group, rows)
    assert scored("energy", stats, group, weights=weights) == pytest.approx([5, 16])
    assert scored("fluctuation", stats, group, weights=weights) == pytest.approx([4, 0])


def test_a_column_slice_starts_at_its_offset():
    group = linear_group(2, 2, offset=3)
    weights = {"m.out.weight": torch.cat([torch.full((2, 3), 9.0), OUT, torch.full((2, 1), 9.0)], 1)}
    assert scored("energy", stats_of(group, ROWS), group, weights=weights) == pytest.approx([23, 37])


def test_taylor_probe_and_block_statistics_are_means_over_samples():
    assert scored("taylor", site(taylor=torch.tensor([2.0, 6]))) == [0.5, 1.5]
    assert scored("probe", site(probe_diag=torch.tensor([8.0, 1]))) == [2.0, 0.25]
    block = PrunableGroup("b.1:blocks", "b.1", "blocks", num_units=1, unit_size=1)
    stats = CalibrationStats(
        {
            block.name: {
                "samples": torch.tensor([2.0, 2]),
                "block_change": torch.tensor([6.0]),
                "block_cosine": torch.tensor([1.0]),
            }
        }
    )
    assert scored("block_change", stats, block) == [1.5]
    assert scored("block_cosine", stats, block) == [0.25]
    assert scored("obs", stats, block) == [1.5]  # a criterion of units leaves blocks to block_change


def test_sink_mass_puts_the_heads_on_sinks_first():
    # (T, H) sums of the mass on sinks over 3 + 1 samples
    mass = torch.tensor([[2.7, 0.3], [0.9, 0.1]])
    assert scored("sink_mass", site(sink_mass=mass)) == pytest.approx([-0.9, -0.1])


def test_sink_mass_of_shared_keys_is_the_mean_over_the_query_heads():
    mass = torch.tensor([[4.0, 2.0, 0.0, 1.0], [0, 0, 0, 1]])
    assert scored("sink_mass", site(sink_mass=mass)) == pytest.approx([-0.75, -0.25])
    with pytest.raises(PruningError, match="'sink_mass' has 3 heads, not a multiple of 2 units"):
        scored("sink_mass", site(sink_mass=mass[:, :3]))


def test_sink_mass_leaves_other_kinds_to_fluctuation():
    group = linear_group(2, 2, kind="ffn_channels")
    assert scored("sink_mass", stats_of(group, ROWS), group) == pytest.approx([6, 0])


def test_random_is_seeded_by_group_and_differs_between_seeds():
    other = linear_group(2, 2, kind="ffn_channels")
    alone = score(WEIGHTS, [HEADS], NOTHING, criterion="random", seed=3).values[HEADS.name]
    both = score(WEIGHTS, [other, HEADS], NOTHING, criterion="random", seed=3).values
    assert torch.equal(alone, both[HEADS.name])
    assert not torch.equal(alone, both[other.name])
    assert not torch.equal(
        alone, score(WEIGHTS, [HEADS], NOTHING, criterion="random", seed=4).values[HEADS.name]
    )
    assert 0 <= float(alone.min()) <= float(alone.max()) < 1
    block = PrunableGroup("b.1:blocks", "b.1", "blocks", num_units=1, unit_size=1)
    assert len(scored("random", NOTHING, block)) == 1


def test_block_criteria_refuse_other_kinds():
    with pytest.raises(PruningError, match="scores groups of kind 'blocks' only, not 'm:attention_heads'"):
        scored("block_change", NOTHING)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "energy", "fluctuation", "obs"])
def test_bf16_weights_score_as_the_same_numbers_in_float64(criterion: str):
    stats = stats_of(HEADS, ROWS)
    half = {path: weight.bfloat16() for path, weight in WEIGHTS.items()}  # small integers: exact in bf16
    full = {path: weight.double() for path, weight in WEIGHTS.items()}
    assert scored(criterion, stats, weights=half) == pytest.approx(
        scored(criterion, stats, weights=full), rel=1e-6
    )
    assert score(half, [HEADS], stats, criterion=criterion).values[HEADS.name].dtype == torch.float64


def test_statistics_of_another_shape_are_refused():
    stats = stats_of(HEADS, ROWS)
    stats.values[HEADS.name] |= {"input_sq": torch.ones(6), "row_weight": torch.ones(2)}
    with pytest.raises(
        PruningError, match=r"'input_sq' is asked for in shape \(4,\), .* gathered it in shape \(6,\)"
    ):
        scored("wanda", stats)


def test_empty_calibration_is_refused():
    with pytest.raises(PruningError, match=r"the row weights sum to 0\.0; calibration must see rows"):
        scored("energy", stats_of(HEADS, ROWS, torch.zeros(4)))
    nobody = CalibrationStats({HEADS.name: {"samples": torch.zeros(2), "taylor": torch.zeros(2)}})
    with pytest.raises(PruningError, match=r"calibration saw 0\.0 samples"):
        scored("taylor", nobody)


def test_a_consumer_without_columns_is_refused():
    group = PrunableGroup("m:x", "m", "ffn_channels", 2, 1, consumed_by=(ParamSlice("m.out.weight", 0, 1),))
    with pytest.raises(PruningError, match="has no consumer that is read by columns"):
        scored("energy", CalibrationStats({"m:x": sums(ROWS, 2)}), group)
