"""`score` and `needs_of`: routing by kind, weighting, consumers, errors, and independence of the order of units."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.errors import PruningError
from pruning.importance import CRITERIA, criterion, needs_of, score, single_changes
from pruning.importance.moments import per_row
from pruning.importance.sink import BASE
from pruning.on_demand import TensorFiles
from pruning.types import CalibrationStats, ParamSlice, PrunableGroup, Scores
from tests.unit.importance_rows import linear_group, random_rows, random_weight, stats_of, sums

BLOCK = PrunableGroup("b.1:blocks", "b.1", "blocks", num_units=1, unit_size=1)
FFN = linear_group(4, 1, kind="ffn_channels")
HEADS = linear_group(4, 1)
WEIGHTS = {"m.out.weight": random_weight(3, 4), "m.up.weight": random_weight(4, 2, seed=2)}


def test_the_criteria_are_found():
    assert {
        "random", "magnitude", "wanda", "taylor", "energy", "fluctuation", "obs", "probe", "sink_mass", "sink",
        "block_change", "block_cosine", "flap", "diff_pruning", "probe_obs", "sink_influence",
    } <= set(CRITERIA)  # fmt: skip
    assert all(entry.fn.__doc__ for _, entry in CRITERIA.items())


def test_needs_are_those_of_the_kinds_at_hand():
    assert needs_of("random", [HEADS, FFN, BLOCK]) == set()
    assert needs_of("magnitude", [HEADS, BLOCK]) == set()
    assert needs_of("wanda", [HEADS]) == {"input_sq", "row_weight"}
    assert needs_of("wanda", [BLOCK]) == {"block_change", "samples"}
    assert needs_of("probe", [HEADS, BLOCK]) == {"probe_diag", "samples", "block_change"}
    assert needs_of("sink_mass", [HEADS]) == {"sink_mass", "samples"}
    assert needs_of("sink_mass", [FFN]) == {"input_unit_moment", "input_sum", "row_weight"}
    assert needs_of("sink", [HEADS, BLOCK]) == needs_of(BASE, [HEADS, BLOCK])


def test_a_killed_run_goes_on_with_the_groups_that_are_missing(tmp_path):
    groups = [replace(HEADS, name=f"g.{number}:heads") for number in range(9)]
    expected = score(WEIGHTS, groups, criterion="random", seed=3)
    said: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        said.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    known = TensorFiles(tmp_path, "scores")
    with pytest.raises(KeyboardInterrupt):
        score(WEIGHTS, groups, criterion="random", seed=3, known=known, progress=interrupt)
    known = TensorFiles(tmp_path, "scores")
    assert sorted(known) == [group.name for group in groups[:4]]
    assert said == [(done, 9) for done in range(5)]

    known["g.1:heads"] = torch.full((4,), 7.0).double()
    found = score(WEIGHTS, groups, criterion="random", seed=3, known=known)
    assert torch.equal(found.values.pop("g.1:heads"), torch.full((4,), 7.0).double())
    assert all(torch.equal(found.values[name], expected.values[name]) for name in found.values)
    assert len(known) == 9


def felt(stats: CalibrationStats, group: PrunableGroup, channels: int = 3) -> CalibrationStats:
    """Add what an error in the consumer's output does, on one sample, the same for every unit."""
    stats.values[group.name] |= {
        "samples": torch.ones(1).double(),
        "output_sensitivity": torch.diag(torch.arange(1.0, channels + 1)).double(),
        "probe_diag": torch.ones(group.num_units).double(),
    }
    return stats


def test_sink_is_its_base_on_the_view_it_is_given():
    rows = random_rows(40, 4)
    stats = felt(stats_of(HEADS, rows), HEADS)
    stats.meta["variants"] = ["on", "permuted"]
    variants = {"on": torch.linspace(0, 1, 40), "permuted": torch.linspace(1, 0, 40)}
    for variant, weights in variants.items():
        weighted = sums(rows, 4, weights)
        stats.values[HEADS.name] |= {f"{name}@{variant}": value for name, value in weighted.items()}
    by_weighting = {
        name: score(WEIGHTS, [HEADS], stats, criterion="sink", weighting=name) for name in ("off", *variants)
    }
    plain = score(WEIGHTS, [HEADS], stats, criterion=BASE)
    assert plain.meta == {"criterion": BASE, "weighting": "off", "seed": 0, "weighted_groups": 0}
    assert torch.equal(by_weighting["off"].values[HEADS.name], plain.values[HEADS.name])
    for name, weights in variants.items():
        by_hand = score(WEIGHTS, [HEADS], felt(stats_of(HEADS, rows, weights), HEADS), criterion=BASE)
        assert torch.allclose(by_weighting[name].values[HEADS.name], by_hand.values[HEADS.name])
        assert not torch.allclose(by_weighting[name].values[HEADS.name], plain.values[HEADS.name])
        assert by_weighting[name].meta["weighted_groups"] == 1
    default = score(WEIGHTS, [HEADS], stats, criterion="sink")
    assert default.meta["weighting"] == "on"
    assert torch.equal(default.values[HEADS.name], by_weighting["on"].values[HEADS.name])


def test_a_weighting_that_weighs_nothing_is_said_aloud(caplog: pytest.LogCaptureFixture):
    stats = stats_of(HEADS, random_rows(40, 4))
    stats.meta["variants"] = ["on"]
    with caplog.at_level(logging.WARNING):
        on = score(WEIGHTS, [HEADS], stats, criterion="fluctuation", weighting="on").values[HEADS.name]
        score(WEIGHTS, [HEADS], criterion="magnitude", weighting="on")
    assert "criterion fluctuation: weighting='on' weighs no row of these groups" in caplog.text
    assert "criterion magnitude: weighting='on' weighs no row of these groups" in caplog.text
    assert torch.equal(on, score(WEIGHTS, [HEADS], stats, criterion="fluctuation").values[HEADS.name])


def test_a_weighting_that_was_not_calibrated_is_refused_where_it_matters():
    stats = stats_of(HEADS, random_rows(40, 4))
    with pytest.raises(PruningError, match="weighting 'on' was not calibrated"):
        score(WEIGHTS, [HEADS], stats, criterion="fluctuation", weighting="on")
    assert score(WEIGHTS, [HEADS], stats, criterion="magnitude", weighting="on").values


def test_unknown_names_are_refused():
    with pytest.raises(
        PruningError, match=r"unknown criterion 'fluctuatoin' \(did you mean 'fluctuation'\?\)"
    ):
        score(WEIGHTS, [HEADS], CalibrationStats(), criterion="fluctuatoin")
    with pytest.raises(PruningError, match="unknown criterion 'x'"):
        needs_of("x", [HEADS])
    with pytest.raises(PruningError, match="unknown weighting 'yes'; valid: off, on, permuted"):
        score(WEIGHTS, [HEADS], CalibrationStats(), criterion="random", weighting="yes")


def test_a_width_that_does_not_fit_says_what_was_asked_and_what_there_is():
    channels = linear_group(2, 2, kind="resnet_channels")
    stats = stats_of(channels, torch.ones(3, 36))  # 9 columns of a 3 x 3 kernel a channel
    with pytest.raises(
        PruningError,
        match=r"'input_sq' is asked for in shape \(4,\), but calibration gathered it in shape \(36,\) \(the group has "
        r"4 channels of 9 unfolded convolution columns each; consumer_columns\(group, weights\) has that width\)",
    ):
        per_row(channels, stats, "input_sq", (4,))
    with pytest.raises(
        PruningError, match=r"in shape \(5,\), but .* in shape \(36,\); if .* calibrate .* anew"
    ):
        per_row(channels, stats, "input_sq", (5,))


def test_missing_statistics_and_parameters_are_named():
    bare = CalibrationStats({HEADS.name: {"row_weight": torch.ones(1)}})
    with pytest.raises(PruningError, match="'input_sq' was not gathered for 'm:attention_heads'"):
        score(WEIGHTS, [HEADS], bare, criterion="wanda")
    with pytest.raises(PruningError, match=r"parameter 'm\.up\.weight' is not among the weights"):
        score({"m.out.weight": torch.ones(1, 4)}, [HEADS], CalibrationStats(), criterion="magnitude")


def test_scores_that_are_not_numbers_are_refused():
    broken = {**WEIGHTS, "m.up.weight": torch.full((4, 2), torch.nan)}
    with pytest.raises(PruningError, match="scores of group 'm:attention_heads' hold NaN"):
        score(broken, [HEADS], CalibrationStats(), criterion="magnitude")


def test_a_criterion_of_ones_own_is_found_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA.items()))  # leave none behind

    @criterion("test_index")
    def index(group, weights, stats, generator):
        """Score by position."""
        return torch.arange(group.num_units)

    assert score({}, [HEADS], CalibrationStats(), criterion="test_index").values[HEADS.name].tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert CRITERIA["test_index"].instead == {"blocks": "block_change", "experts": "expert_energy"}
    with pytest.raises(ValueError, match="criterion 'test_index' is registered twice"):
        criterion("test_index")(index)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["magnitude", "wanda", "energy", "fluctuation", "flap", "obs", "probe_obs", "sink"]),
    order=st.permutations(range(4)),
    u=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_scores_move_with_the_units(name: str, order: list[int], u: int, seed: int):
    group = linear_group(4, u)
    rows = random_rows(40, 4 * u, seed)
    columns = torch.cat([torch.arange(g * u, (g + 1) * u) for g in order])
    weights = {
        "m.out.weight": random_weight(3, 4 * u, seed=seed),
        "m.up.weight": random_weight(4 * u, 2, seed=seed),
    }
    moved = {
        "m.out.weight": weights["m.out.weight"][:, columns],
        "m.up.weight": weights["m.up.weight"][columns],
    }
    stats, stats_moved = felt(stats_of(group, rows), group), felt(stats_of(group, rows[:, columns]), group)
    before = score(weights, [group], stats, criterion=name, weighting="off").values[group.name]
    after = score(moved, [group], stats_moved, criterion=name, weighting="off").values[group.name]
    torch.testing.assert_close(after, before[order], rtol=1e-6, atol=1e-9)


def test_grouped_sums_do_not_depend_on_the_number_of_buckets():
    rows = random_rows(40, 4)
    one, eight = (stats_of(HEADS, rows, buckets=n) for n in (1, 8))
    for name in ("wanda", "fluctuation", "obs"):
        a, b = (score(WEIGHTS, [HEADS], stats, criterion=name).values[HEADS.name] for stats in (one, eight))
        torch.testing.assert_close(a, b)


# Two projections read the same four heads: `m.out` its own rows, `m.add` the columns 2 to 6 of a wider weight.
JOINT = replace(HEADS, consumed_by=(HEADS.read_by, ParamSlice("m.add.weight", 1, 1, offset=2)))
BOTH = {**WEIGHTS, "m.add.weight": random_weight(5, 6, seed=3)}
STREAMS = {"m.out": random_rows(40, 4), "m.add[2:6]": random_rows(30, 4, seed=9)}


def joint_stats() -> CalibrationStats:
    return CalibrationStats(
        {
            place: felt(stats_of(HEADS, rows), HEADS, channels=len(BOTH[f"{place[:5]}.weight"])).values[
                HEADS.name
            ]
            for place, rows in STREAMS.items()
        }
    )


@pytest.mark.parametrize("name", ["wanda", "energy", "fluctuation", "flap", "obs", "probe", "probe_obs"])
def test_a_group_that_two_modules_read_scores_the_sum_over_them(name: str):
    got = score(BOTH, [JOINT], joint_stats(), criterion=name).values[HEADS.name]
    total = torch.zeros(4).double()
    for place, part in zip(STREAMS, JOINT.consumed_by, strict=True):
        one = replace(HEADS, consumed_by=(part,))
        alone = CalibrationStats({one.name: joint_stats().values[place]})
        total += score(BOTH, [one], alone, criterion=name).values[HEADS.name]
    torch.testing.assert_close(got, total, rtol=1e-12, atol=0)


def test_what_judges_a_group_as_a_whole_is_not_counted_twice():
    for name in ("random", "magnitude"):
        got = score(BOTH, [JOINT], criterion=name).values[HEADS.name]
        if name == "random":
            assert torch.equal(got, score(WEIGHTS, [HEADS], criterion=name).values[HEADS.name])
        else:
            owned = (WEIGHTS["m.out.weight"].T, WEIGHTS["m.up.weight"], BOTH["m.add.weight"][:, 2:6].T)
            by_hand = sum(part.double().square().sum(1) for part in owned)
            torch.testing.assert_close(got, by_hand.sqrt(), rtol=1e-5, atol=0)
    stats = joint_stats()
    samples = {"samples": torch.ones(1).double()}
    stats.values[JOINT.name] = {"diff_pruning": torch.arange(4).double(), **samples}
    stats.values["m"] = {"sink_mass": torch.arange(4.0).double()[None], **samples}
    assert score(BOTH, [JOINT], stats, criterion="diff_pruning").values[HEADS.name].tolist() == [0, 1, 2, 3]
    assert score(BOTH, [JOINT], stats, criterion="sink_mass").values[HEADS.name].tolist() == [0, -1, -2, -3]


def test_one_consumer_of_several_is_not_taken_for_the_group():
    assert [one.consumer_key for one in JOINT.consumers] == list(STREAMS)
    with pytest.raises(
        PruningError, match="'m:attention_heads' of kind 'attention_heads' has 2 consumers, and one was"
    ):
        JOINT.consumer  # noqa: B018
    with pytest.raises(
        PruningError, match=r"'b\.1:blocks' of kind 'blocks' has no consumers, and one was asked for"
    ):
        BLOCK.consumer_key  # noqa: B018
    lacking = joint_stats()
    del lacking.values["m.add[2:6]"]["input_sq"]
    with pytest.raises(PruningError, match="'input_sq' was not gathered for 'm:attention_heads'"):
        score(BOTH, [JOINT], lacking, criterion="wanda")


@pytest.mark.parametrize(
    ("criterion", "known"),
    [("block_change", True), ("probe_obs", True), ("block_cosine", False), ("magnitude", False)],
)
def test_scores_of_blocks_are_changes_of_the_output_or_something_else(criterion, known):
    values = {HEADS.name: torch.ones(HEADS.num_units).double(), BLOCK.name: torch.tensor([2.5]).double()}
    scores = Scores(values, {"criterion": criterion})
    assert single_changes(scores, [HEADS, BLOCK]) == ({BLOCK.module: 2.5} if known else {})
    assert single_changes(Scores(values), [HEADS, BLOCK]) == {}
