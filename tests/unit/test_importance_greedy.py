"""Greedy removal in batches against removal one by one, as the formulas are written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pruning.importance import greedy, score
from pruning.importance.greedy import greedy_removal
from tests.unit.importance_rows import linear_group, random_rows, random_weight, stats_of
from tests.unit.test_importance_obs import direct_cost, regularised


def one_by_one(weight: Tensor, inverse: Tensor, units: int) -> tuple[list[int], list[float]]:
    """W <- W - W_g A_gg^-1 A_g:, A <- A - A_:g A_gg^-1 A_g:, each time for the unit of the lowest cost."""
    u, left = len(inverse) // units, list(range(units))
    order: list[int] = []
    costs: list[float] = []
    while left:
        options = []
        for g in left:
            own = slice(g * u, (g + 1) * u)
            options.append(
                float(torch.trace(weight[:, own] @ inverse[own, own].inverse() @ weight[:, own].T))
            )
        costs.append(min(options))
        g = left.pop(options.index(min(options)))
        own = slice(g * u, (g + 1) * u)
        explained = inverse[own, own].inverse() @ inverse[own]
        weight, inverse = weight - weight[:, own] @ explained, inverse - inverse[:, own] @ explained
        order.append(g)
    return order, costs


def covariance(kind: str, width: int) -> Tensor:
    rows = random_rows(4 * width, width)
    if kind == "massive":
        rows[:, :: width // 4] *= 300
    elif kind == "deficient":
        rows = rows[: width // 3]
    elif kind == "copies":
        rows[:, width // 2 :] = rows[:, : width - width // 2] + 0.01 * rows[:, width // 2 :]
    return regularised(rows)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "PENDING", 12)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("kind", ["plain", "massive", "deficient", "copies"])
@pytest.mark.parametrize(("units", "u"), [(70, 1), (40, 2), (22, 5), (8, 13)])
def test_batches_remove_what_single_steps_do(kind: str, units: int, u: int):
    weight, inverse = random_weight(6, units * u), torch.linalg.inv(covariance(kind, units * u))
    order, costs = greedy_removal(weight.clone(), inverse.clone(), units)
    expected, expected_costs = one_by_one(weight, inverse, units)
    assert order == expected
    assert costs == pytest.approx(expected_costs, rel=1e-6)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("u", [1, 3])
def test_a_batch_ends_where_another_unit_becomes_cheaper(u: int, monkeypatch: pytest.MonkeyPatch):
    # Pairs of nearly equal inputs whose outputs nearly cancel: once one is gone, the other costs next to nothing.
    pairs, ends = 30, []
    weight = random_weight(5, pairs * u) * torch.linspace(1, 3, pairs).double().repeat_interleave(u)
    weight = torch.cat([weight, -0.99 * weight], 1)
    rows = random_rows(500, pairs * u)
    rows = torch.cat([rows, rows + 0.1 * random_rows(500, pairs * u, seed=5)], 1)
    inverse = torch.linalg.inv(regularised(rows))
    hold = greedy._hold

    def watched(*given: Tensor) -> int:
        ends.append(hold(*given) < len(given[4]) // u)
        return hold(*given)

    monkeypatch.setattr(greedy, "CANDIDATES", 1)
    monkeypatch.setattr(greedy, "_hold", lambda *given: watched(*(one.clone() for one in given)))
    order, costs = greedy_removal(weight.clone(), inverse.clone(), 2 * pairs)
    expected, expected_costs = one_by_one(weight, inverse, 2 * pairs)
    assert any(ends)
    assert order == expected
    assert costs == pytest.approx(expected_costs, rel=1e-6)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("u", [1, 3])
def test_of_equal_units_the_first_goes(u: int):
    # Nothing reads units 3 to 29: they cost nothing, and go first, from the first to the last.
    weight, inverse = random_weight(4, 40 * u), torch.linalg.inv(covariance("plain", 40 * u))
    weight[:, 3 * u : 30 * u] = 0
    order, _ = greedy_removal(weight, inverse, 40)
    assert order[:27] == list(range(3, 30))


@pytest.mark.parametrize("kind", ["plain", "massive", "deficient", "copies"])
@pytest.mark.parametrize(("units", "u"), [(400, 1), (20, 20)])
def test_float32_chooses_as_well_as_float64(kind: str, units: int, u: int, monkeypatch: pytest.MonkeyPatch):
    group, width = linear_group(units, u), units * u
    weight, matrix = random_weight(40, width), covariance(kind, width)
    stats = stats_of(group, random_rows(10, width))
    stats.values[group.name]["input_sum"] *= 0
    stats.values[group.name]["input_moment"] = 10 * (
        matrix - matrix.diagonal().mean() * 0.01 / 1.01 * torch.eye(width)
    )
    found = []
    for single in (width, 0):
        monkeypatch.setattr("pruning.cholesky.WIDE", single)
        found.append(score({"m.out.weight": weight}, [group], stats, criterion="obs").values[group.name])
    assert not torch.equal(*found)
    assert float(found[1].sum()) == pytest.approx(float(found[0].sum()), rel=1e-4)
    same = (
        kind != "deficient" or u > 1
    )  # where most inputs are copies of others, some cost the same but for rounding
    if same:
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5 * float(found[0].mean()))
    count = int(0.3 * units)
    double, single = (direct_cost(weight, matrix, tuple(one.argsort()[:count].tolist()), u) for one in found)
    assert single == pytest.approx(double, rel=1e-4 if same else 5e-3)


def test_the_device_may_be_named():
    group = linear_group(6, 2)
    stats, weights = stats_of(group, random_rows(80, 12)), {"m.out.weight": random_weight(5, 12)}
    given = ["cpu", torch.device("cpu")]
    one, other = (score(weights, [group], stats, criterion="obs", device=d).values[group.name] for d in given)
    assert torch.equal(one, other)
