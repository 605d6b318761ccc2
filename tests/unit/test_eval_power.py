"""The smallest difference that could have been told apart: held to simulated evaluations."""

import math

import pytest
import torch

from eval.power import MULTIPLIER, power_of_difference, power_of_ratio


def test_the_multiplier_is_that_of_the_tables() -> None:
    assert pytest.approx(1.959964 + 0.841621, abs=1e-6) == MULTIPLIER


def test_four_of_five_evaluations_tell_that_difference_apart() -> None:
    # 400 paired differences of spread 1: the standard error is 1 / 20.
    share = power_of_difference("x", 1 / 20, base=1.0, samples=400)["x_detectable"]
    draws = share + torch.randn(4000, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means, errors = draws.mean(1), draws.std(1) / 20
    told = float(((means - 1.96 * errors) > 0).double().mean())
    assert told == pytest.approx(0.8, abs=0.025)


def test_the_size_for_one_percent_follows_the_law_of_one_over_n() -> None:
    found = power_of_difference("x", 0.1, base=2.0, samples=100)
    assert found["x_detectable"] == pytest.approx(MULTIPLIER * 0.05)
    assert found["x_size_1pct"] == math.ceil(100 * (MULTIPLIER * 0.05 / 0.01) ** 2)
    at_that_size = power_of_difference("x", 0.1 * math.sqrt(100 / found["x_size_1pct"]), 2.0, 1)
    assert at_that_size["x_detectable"] == pytest.approx(0.01, rel=1e-3)


def test_a_ratio_is_judged_on_a_log_scale() -> None:
    found = power_of_ratio("x", math.log(1.01) / MULTIPLIER, samples=77)
    assert found["x_detectable"] == pytest.approx(0.01)
    assert found["x_size_1pct"] in (77, 78)  # rounded up
    assert power_of_ratio("x", 1.0, samples=77)["x_detectable"] == pytest.approx(math.exp(MULTIPLIER) - 1)


@pytest.mark.parametrize(
    "found",
    [
        power_of_ratio("x", 0.0, 10),
        power_of_ratio("x", 1000.0, 10),
        power_of_difference("x", 0.0, 1.0, 10),
        power_of_difference("x", 0.1, 0.0, 10),
        power_of_difference("x", 0.1, -1.0, 10),
    ],
)
def test_where_nothing_can_be_said(found: dict) -> None:
    assert found == {"x_samples": 10, "x_detectable": None, "x_size_1pct": None}
