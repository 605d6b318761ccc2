"""Greedy set OBS against the direct formula and brute force."""

from __future__ import annotations

import itertools
import logging
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning.calibration.kept import Kept
from pruning.calibration.triangle import Symmetric, Triangle
from pruning.errors import PruningError
from pruning.importance import score
from pruning.importance.greedy import greedy_removal
from pruning.importance.moments import covariance, per_row
from pruning.importance.obs import RIDGE
from pruning.types import CalibrationStats
from tests.unit.importance_rows import linear_group, random_rows, random_weight, stats_of


def regularised(rows: Tensor) -> Tensor:
    """Sigma + gamma I of rows (N, P)."""
    centred = rows - rows.mean(0)
    sigma = centred.T @ centred / len(rows)
    return sigma + RIDGE * sigma.diagonal().mean() * torch.eye(len(sigma), dtype=torch.float64)


def direct_cost(weight: Tensor, matrix: Tensor, units: tuple[int, ...], u: int) -> float:
    """tr(W_R [(matrix^-1)_RR]^-1 W_R^T), as it is written."""
    if not units:
        return 0.0
    r = torch.cat([torch.arange(g * u, (g + 1) * u) for g in units])
    inner = torch.linalg.inv(matrix)[r][:, r]
    return float(torch.trace(weight[:, r] @ torch.linalg.inv(inner) @ weight[:, r].T))


def brute_force(weight: Tensor, matrix: Tensor, units: int, u: int) -> tuple[list[int], list[float]]:
    order: list[int] = []
    costs: list[float] = []
    while len(order) < units:
        rest = [g for g in range(units) if g not in order]
        options = {g: direct_cost(weight, matrix, (*order, g), u) for g in rest}
        best = min(rest, key=lambda g: options[g])
        costs.append(options[best] - sum(costs))
        order.append(best)
    return order, costs


@pytest.mark.parametrize(("units", "u"), [(5, 3), (12, 1), (3, 1), (2, 4)])
def test_greedy_removal_is_the_brute_force_one(units: int, u: int):
    weight, matrix = random_weight(4, units * u), regularised(random_rows(60, units * u))
    order, costs = greedy_removal(weight.clone(), torch.linalg.inv(matrix), units)
    expected, expected_costs = brute_force(weight, matrix, units, u)
    assert order == expected
    assert costs == pytest.approx(expected_costs, rel=1e-8)


def test_pending_updates_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    weight, matrix = random_weight(6, 40), regularised(random_rows(90, 40))
    results = []
    for pending in (1, 7, 64):
        monkeypatch.setattr("pruning.importance.greedy.PENDING", pending)
        results.append(greedy_removal(weight.clone(), torch.linalg.inv(matrix), 40))
    for order, costs in results[1:]:
        assert order == results[0][0]
        assert costs == pytest.approx(results[0][1], rel=1e-8)


def test_cost_of_every_subset_is_the_sum_along_any_path_to_it():
    # What makes downdating right: the direct cost grows by what each removal adds, whatever the order.
    units, u = 4, 2
    weight, matrix = random_weight(3, units * u), regularised(random_rows(50, units * u))
    order, costs = greedy_removal(weight.clone(), torch.linalg.inv(matrix), units)
    for k in range(1, units + 1):
        assert sum(costs[:k]) == pytest.approx(direct_cost(weight, matrix, tuple(order[:k]), u), rel=1e-9)
    for subset in itertools.combinations(range(units), 2):
        alone = max(direct_cost(weight, matrix, (g,), u) for g in subset)
        assert direct_cost(weight, matrix, subset, u) >= alone - 1e-9


def test_uncorrelated_units_score_as_fluctuation_plus_the_ridge():
    # Rows (+-1, +-2) in all four combinations: Sigma = diag(1, 4), gamma = 0.01 * 2.5. W = (3, 1).
    group = linear_group(2, 1, kind="ffn_channels")
    rows = torch.tensor([[1.0, 2], [1, -2], [-1, 2], [-1, -2]])
    weights = {"m.out.weight": torch.tensor([[3.0, 1.0]])}
    got = score(weights, [group], stats_of(group, rows), criterion="obs").values[group.name].tolist()
    assert got == pytest.approx([9 * 1.025, 1 * 4.025], rel=1e-8)


def test_scores_sum_to_the_cost_of_removing_everything_and_sort_into_the_greedy_order():
    group, u = linear_group(6, 2), 2
    weight, rows = random_weight(5, 12), random_rows(80, 12)
    scores = score({"m.out.weight": weight}, [group], stats_of(group, rows), criterion="obs").values[
        group.name
    ]
    order, _ = brute_force(weight, regularised(rows), 6, u)
    assert scores.argsort().tolist() == order
    everything = direct_cost(weight, regularised(rows), tuple(range(6)), u)
    assert float(scores.sum()) == pytest.approx(everything, rel=1e-7)


def test_heads_that_copy_each_other_are_cheap_alone_and_expensive_together():
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    other = 0.5 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    noise = 0.01 * torch.randn(400, 2, generator=generator, dtype=torch.float64)
    rows, weight = torch.cat([head, other, head + noise], 1), random_weight(4, 6)
    matrix = regularised(rows)
    alone = [direct_cost(weight, matrix, (g,), 2) for g in (0, 2)]
    assert max(alone) < 0.05 * direct_cost(weight, matrix, (0, 2), 2)
    group = linear_group(3, 2)
    values = score({"m.out.weight": weight}, [group], stats_of(group, rows), criterion="obs").values[
        group.name
    ]
    first = int(values.argmin())
    assert first in (0, 2)
    assert float(values[first]) == pytest.approx(min(alone), rel=1e-6)
    assert float(values[2 - first]) > 20 * float(values[first])


def test_a_unit_that_only_cancels_another_is_pooled_with_it():
    # x1 = x0 and W = (1, -1): removing one costs about 1, then the other is worth nothing: 1/2 each, not 1 and 0.
    group = linear_group(2, 1, kind="ffn_channels")
    noise = torch.tensor([0.5, -0.5, 0.5, -0.5]).double()
    x = torch.tensor([1.0, 1, -1, -1]).double()
    rows = torch.stack([x + noise, x - noise], 1)  # Sigma = [[1.25, 0.75], [0.75, 1.25]]
    weights = {"m.out.weight": torch.tensor([[1.0, -1.0]])}
    values = score(weights, [group], stats_of(group, rows), criterion="obs").values[group.name]
    total = 2 * (1.2625 - 0.75)  # W (Sigma + gamma I) W^T with gamma = 0.0125
    assert values.tolist() == pytest.approx([total / 2, total / 2], rel=1e-6)
    assert values[0] != values[1]  # a tie is broken in the order of removal


def test_dead_units_score_nothing_and_keep_an_order():
    group = linear_group(3, 2)
    stats = stats_of(group, torch.ones(10, 6))  # constant rows: no variance at all
    values = score({"m.out.weight": random_weight(4, 6)}, [group], stats, criterion="obs").values[group.name]
    assert values.abs().max() < 1e-10
    assert len(set(values.tolist())) == 3


def test_a_singular_covariance_raises_the_ridge_aloud(caplog: pytest.LogCaptureFixture):
    group = linear_group(4, 1, kind="ffn_channels")
    stats = stats_of(group, random_rows(50, 4))
    sigma = stats.values[group.name]["input_moment"]
    sigma[0, 1] = sigma[1, 0] = 1.2 * (sigma[0, 0] * sigma[1, 1]).sqrt()  # not a covariance any more
    with caplog.at_level(logging.WARNING):
        values = score({"m.out.weight": random_weight(3, 4)}, [group], stats, criterion="obs").values[
            group.name
        ]
    assert torch.isfinite(values).all()
    assert "is singular with ridge 0.01; raised to 0.1" in caplog.text


def test_a_moment_that_is_kept_as_a_triangle_is_read_by_rows(monkeypatch: pytest.MonkeyPatch):
    group, weight = linear_group(75, 2), random_weight(9, 150)
    stats = stats_of(group, random_rows(400, 150))
    own = stats.values[group.name]
    moment = Triangle.zeros(150)
    Symmetric(
        150, torch.device("cpu"), lambda rows, columns: own["input_moment"][rows, columns].clone(), 150
    ).add_to(moment)
    kept = CalibrationStats({group.name: Kept.of({**own, "input_moment": moment})}, stats.meta)
    monkeypatch.setattr(Triangle, "whole", Mock(side_effect=AssertionError("the whole moment was made")))
    found, expected = (
        score({"m.out.weight": weight}, [group], each, criterion="obs").values[group.name]
        for each in (kept, stats)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    mean = per_row(group, stats, "input_sum", (150,))
    some, other = torch.tensor([149, 3, 64, 63]), torch.tensor([0, 149])
    part = covariance(group, kept.of(group), mean, some, other)
    torch.testing.assert_close(part, covariance(group, stats, mean)[some][:, other], rtol=1e-5, atol=1e-6)


def test_a_broken_covariance_is_refused():
    group = linear_group(4, 1, kind="ffn_channels")
    stats = stats_of(group, random_rows(50, 4))
    stats.values[group.name]["input_moment"][2, 2] = torch.nan
    with pytest.raises(PruningError, match="group 'm:ffn_channels': the covariance holds NaN or infinity"):
        score({"m.out.weight": random_weight(3, 4)}, [group], stats, criterion="obs")


@pytest.mark.parametrize("missing", ["input_sum", "input_moment"])
def test_a_missing_statistic_is_named(missing: str):
    group = linear_group(2, 1)
    stats = stats_of(group, random_rows(20, 2))
    del stats.values[group.name][missing]
    with pytest.raises(PruningError, match=f"{missing!r} was not gathered for 'm:attention_heads'"):
        score({"m.out.weight": torch.ones(1, 2)}, [group], stats, criterion="obs")


@settings(max_examples=25, deadline=None)
@given(units=st.integers(2, 6), u=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_order_sums_and_sign_hold_for_any_size(units: int, u: int, seed: int):
    weight, matrix = random_weight(3, units * u, seed=seed), regularised(random_rows(40, units * u, seed))
    order, costs = greedy_removal(weight.clone(), torch.linalg.inv(matrix), units)
    assert sorted(order) == list(range(units))
    assert min(costs) >= 0
    for k in range(units + 1):
        assert sum(costs[:k]) == pytest.approx(direct_cost(weight, matrix, tuple(order[:k]), u), rel=1e-6)
