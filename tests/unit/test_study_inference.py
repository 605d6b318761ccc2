"""The statistics of the study, against cases worked out by hand and against scipy."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr, ttest_1samp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from study.inference import (
    Contrast,
    crossed_bootstrap,
    holm,
    paired,
    partial_spearman,
    verdicts,
)
from study.store import Store
from study.subjects import DECIDING, LOOKING, SUBJECTS, Cell, cells


def test_a_paired_contrast_is_a_t_test_of_the_log_ratios():
    a = {1: 1.0, 2: 2.0, 3: 2.5, 9: 7.0}
    b = {1: 1.1, 2: 2.6, 3: 2.6, 4: 1.0}
    logs = np.log([1.0 / 1.1, 2.0 / 2.6, 2.5 / 2.6])
    test = ttest_1samp(logs, 0.0)
    found = paired("m", "a", "b", a, b)
    assert found.sets == 3
    assert found.log_ratio == pytest.approx(logs.mean())
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert paired("m", "a", "b", a, {1: 1.0}) is None
    assert paired("m", "a", "a", a, a).p == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9]) == [0.9]
    assert holm([0.5, 0.6]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("mean", "half", "p", "verdict"),
    [
        (-0.10, 0.02, 1e-6, "win"),
        (0.10, 0.02, 1e-6, "loss"),
        (0.00, 0.02, 0.9, "equivalent"),
        (-0.02, 0.005, 1e-6, "equivalent"),
        (-0.10, 0.20, 0.3, "inconclusive"),
        (-0.028, 0.01, 1e-6, "inconclusive"),
    ],
)
def test_verdicts(mean, half, p, verdict):
    assert verdicts([Contrast("m", "a", "b", mean, mean - half, mean + half, p, 8)]) == [verdict]


def test_a_correction_over_models_can_take_a_win_away():
    one = Contrast("m", "a", "b", -0.1, -0.19, -0.01, 0.03, 8)
    assert verdicts([one]) == ["win"]
    assert verdicts([one, one]) == ["inconclusive", "inconclusive"]


def test_the_crossed_bootstrap_covers_a_known_ratio_and_widens_with_fewer_sets():
    rng = np.random.default_rng(0)
    power = np.ones(200)
    base = rng.exponential(size=(8, 200)) + 0.5
    noise = np.exp(rng.normal(0, 0.1, size=(8, 1)))
    low, high = crossed_bootstrap(base * 0.9 * noise, base, power, resamples=400)
    assert low < math.log(0.9) < high
    same = crossed_bootstrap(base, base, power, resamples=50)
    assert same == (0.0, 0.0)


def test_partial_spearman_within_layers():
    rng = np.random.default_rng(1)
    layer = np.repeat(np.arange(20), 10)
    z = rng.normal(size=200)
    x, y = z + 0.1 * rng.normal(size=200), z + 0.1 * rng.normal(size=200)
    nothing = np.zeros(200)
    assert partial_spearman(x, y, nothing, layer) > 0.9
    assert abs(partial_spearman(x, y, z, layer)) < 0.3
    one = np.zeros(200)
    assert partial_spearman(x, y, nothing, one) == pytest.approx(spearmanr(x, y).statistic)
    assert partial_spearman(x + 100 * layer, y - 100 * layer, nothing, layer) == pytest.approx(
        partial_spearman(x, y, nothing, layer)
    )


def test_the_grid_has_no_cell_twice_and_compares_disjoint_sets():
    assert not set(LOOKING) & set(DECIDING)
    for subject in SUBJECTS.values():
        keys = [cell.key for cell in cells(subject, sinks=True)]
        assert len(keys) == len(set(keys))
        assert {cell.omega for cell in cells(subject, sinks=False)} == {"off"}


def test_the_store_goes_on_after_half_a_line(tmp_path):
    cell, other = Cell("m", "obs", seed=4), Cell("m", "obs", seed=5)
    Store(tmp_path).add(cell, {"excess_error": 0.5}, np.ones(3), np.full(3, 2.0))
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write('{"key": "half')
    store = Store(tmp_path)
    assert cell in store
    assert other not in store
    store.add(other, {"excess_error": 0.25}, np.ones(3), np.ones(3))
    assert Store(tmp_path).rows[other.key]["excess_error"] == 0.25
    assert Store(tmp_path).images(cell).tolist() == [[1, 1, 1], [2, 2, 2]]
