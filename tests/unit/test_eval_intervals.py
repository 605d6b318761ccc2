"""Intervals against values worked out by hand."""

import math

import pytest
import torch

from eval.intervals import mean_interval, median_interval, ratio_interval


def test_mean_interval_is_the_t_interval() -> None:
    # mean 2, standard deviation 1, n = 3: standard error 1 / sqrt(3), t(0.975, 2) = 4.302653
    low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


def test_ratio_interval_by_hand() -> None:
    # D = 6 / 3 = 2, residuals a - 2 b = (1 - 2, 5 - 4) = (-1, 1), variance 2 / 1 * 2 / 9, t(0.975, 1) = 12.706205
    low, high = ratio_interval(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0]))
    reach = 12.706205 * math.sqrt(4 / 9)
    assert (low, high) == pytest.approx((2 - reach, 2 + reach))


def test_one_cluster_has_no_interval() -> None:
    assert ratio_interval(torch.tensor([1.0]), torch.tensor([2.0])) is None


@pytest.mark.parametrize(
    ("n", "expected", "coverage"),
    [
        (1, [1, 1], 0.0),
        (5, [1, 5], 1 - 2 / 32),
        (6, [1, 6], 1 - 2 / 64),  # the least n that carries 95 %
        (9, [2, 8], 1 - 2 * (1 + 9) / 512),  # one more on each side would carry 1 - 2 * 46 / 512 = 82 %
    ],
)
def test_median_interval_by_hand(n: int, expected: list[float], coverage: float) -> None:
    values = [float(v) for v in range(n, 0, -1)]
    assert median_interval(values) == (expected, pytest.approx(coverage))
