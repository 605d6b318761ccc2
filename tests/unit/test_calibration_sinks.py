"""Sink indicator, stability and token weights, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pruning.calibration.attention.streaming import SinkSums
from pruning.calibration.sinks.detection import detection_settings, relative_mass, soft_indicator
from pruning.calibration.sinks.stability import stability
from pruning.calibration.sinks.weights import needs_stability, token_weights
from pruning.settings import SinkWeights


def sums(mass: list[float], expected: list[float] | None = None, total: int = 10, heads: int = 1) -> SinkSums:
    m = torch.tensor(mass).double()[None, None].expand(1, heads, -1)
    e = None if expected is None else torch.tensor(expected).double()[None, None].expand(1, heads, -1)
    return SinkSums(m, m.square(), e, total)


UNIFORM = [1 / 16] * 16


def peaked(at: int, mass: float, keys: int = 16) -> list[float]:
    return [mass if j == at else (1 - mass) / (keys - 1) for j in range(keys)]


def test_relative_mass_is_one_for_an_indifferent_head() -> None:
    torch.testing.assert_close(relative_mass(sums(UNIFORM)), torch.ones(1, 1, 16).double())
    causal = [(1 + 1 / 2) / 2, 1 / 4]  # two causal queries that attend evenly
    torch.testing.assert_close(relative_mass(sums(causal, causal)), torch.ones(1, 1, 2).double())


def test_masked_keys_have_no_relative_mass_and_are_no_sinks() -> None:
    expected = [1 / 10] * 10 + [0.0] * 6
    mass = peaked(2, 0.6, 10) + [0.0] * 6
    assert relative_mass(sums(mass, expected))[0, 0, 10:].tolist() == [0.0] * 6
    s = soft_indicator(sums(mass, expected), SinkWeights())
    assert s[0, 10:].tolist() == [0.0] * 6
    # r = 6, rho = sqrt(10) counts the visible keys
    assert float(s[0, 2]) == pytest.approx(1 / (1 + (6 / math.sqrt(10)) ** -4))


def test_the_indicator_is_one_half_at_rho() -> None:
    s = soft_indicator(sums(peaked(3, 4 / 16)), SinkWeights())  # r = 4 = sqrt(16)
    assert float(s[0, 3]) == pytest.approx(0.5)
    assert float(soft_indicator(sums(peaked(3, 4 / 16)), SinkWeights(rho=2.0))[0, 3]) == pytest.approx(
        16 / 17
    )


def test_the_indicator_takes_the_mean_over_heads() -> None:
    mass = torch.tensor([peaked(3, 7 / 16), peaked(5, 1 / 16)]).double()[None]  # r_3 = 7 and 1: mean 4
    s = soft_indicator(SinkSums(mass, mass, None, 1), SinkWeights())
    assert float(s[0, 3]) == pytest.approx(0.5, abs=1e-3)


def test_few_keys_have_no_sinks() -> None:
    assert soft_indicator(sums(peaked(0, 0.99, 7)), SinkWeights()).tolist() == [[0.0] * 7]
    assert float(soft_indicator(sums(peaked(0, 0.99, 8)), SinkWeights())[0, 0]) > 0.9
    visible = [1 / 7] * 7 + [0.0]
    assert soft_indicator(sums([*peaked(0, 0.99, 7), 0.0], visible), SinkWeights()).max() == 0


def test_paper_mode_is_the_released_codes_sigmoid() -> None:
    mass = torch.tensor(peaked(1, 0.5)).double()
    s = soft_indicator(sums(mass.tolist(), total=10, heads=2), SinkWeights(mode="paper", alpha=5.0))
    summed = mass * 2 * 10
    by_hand = torch.sigmoid(5 * (summed - summed.mean() - 2 * summed.std(correction=0)))
    torch.testing.assert_close(s[0], by_hand)
    assert float(s[0, 1]) > 0.99  # saturated at that scale


def test_hard_mode_is_a_threshold() -> None:
    s = soft_indicator(sums(peaked(1, 0.2)), SinkWeights(mode="hard", epsilon=0.1))
    assert s.tolist() == [[0.0, 1.0] + [0.0] * 14]
    assert soft_indicator(sums(peaked(1, 0.15)), SinkWeights(mode="hard", epsilon=0.1)).max() == 0


def moments(s: list[float]) -> tuple[Tensor, Tensor]:
    values = torch.tensor(s).double()
    return values.mean(), values.square().mean()


def test_stability_is_one_for_a_steady_sink_and_one_over_t_for_a_single_timestep() -> None:
    assert float(stability(*moments([0.9] * 8))) == pytest.approx(1.0)
    assert float(stability(*moments([0.9] + [0.0] * 7))) == pytest.approx(1 / 8)
    assert float(stability(*moments([1.0, 1.0, 0.0, 0.0]))) == pytest.approx(1 / 2)
    assert float(stability(*moments([0.0] * 8))) == 0.0


@pytest.mark.parametrize(
    ("lambdas", "expected"),
    [
        ((0.0, 0.0), [1.0, 1.0, 1.0]),
        ((1.0, 1.0), [1 - 0.8, 1 - 0.8, 1.0]),
        ((1.0, 0.0), [1 - 0.8 * 0.75, 1.0, 1.0]),
        ((0.0, 1.0), [1 - 0.8 * 0.25, 1 - 0.8, 1.0]),
        ((-1.0, -1.0), [1.8, 1.8, 1.0]),
    ],
)
def test_token_weights_of_an_unstable_and_a_stable_sink_and_no_sink(
    lambdas: tuple[float, float], expected: list[float]
) -> None:
    s, phi = torch.tensor([[0.8, 0.8, 0.009]]).double(), torch.tensor([[0.25, 1.0, 0.5]]).double()
    found = token_weights(s, phi, SinkWeights(unstable=lambdas[0], stable=lambdas[1]))
    torch.testing.assert_close(found, torch.tensor([expected]).double())
    assert float(found[0, 2]) == 1.0  # exactly


def test_what_the_first_pass_depends_on() -> None:
    drop, keep = SinkWeights(unstable=1.0, stable=1.0, kappa=7.0), SinkWeights(unstable=0.0, stable=0.5)
    assert detection_settings(drop) == detection_settings(keep)
    assert detection_settings(SinkWeights(alpha=2.0)) != detection_settings(SinkWeights())
    assert detection_settings(SinkWeights(epsilon=0.1)) != detection_settings(SinkWeights())
    assert needs_stability(keep)
    assert not needs_stability(drop)
