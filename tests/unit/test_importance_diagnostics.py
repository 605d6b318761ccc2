"""Diagnostics of attention heads, worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pruning.importance import DIAGNOSTIC_NEEDS, head_diagnostics
from pruning.importance.diagnostics import label
from pruning.types import CalibrationStats
from tests.unit.importance_rows import linear_group, stats_of

# Four heads of one channel, W = (1, 1, 1, 1). Even rows are bucket 0, odd rows bucket 1.
#   head 0: 2 always                     energy 4, variance 0
#   head 1: 3 in bucket 0, -1 in 1       energy 5, variance 4
#   head 2: 1 and -1 in either bucket    energy 1, variance 1
#   head 3: 0 always
ROWS = torch.tensor([[2.0, 3, 1, 0], [2, -1, 1, 0], [2, 3, -1, 0], [2, -1, -1, 0]])
WEIGHTS = {"m.out.weight": torch.ones(1, 4)}
HEADS = linear_group(4, 1)


def stats() -> CalibrationStats:
    gathered = stats_of(HEADS, ROWS)
    gathered.values[HEADS.name] |= {
        "samples": torch.tensor([1.0, 1.0]),
        "sink_mass": torch.tensor([[0.9, 0.8, 0.1, 0.5], [0.7, 0.8, 0.1, 0.5]]),  # sums over samples, (T, H)
    }
    return gathered


def test_figures_and_labels_by_hand():
    heads = head_diagnostics(WEIGHTS, [HEADS], stats())
    assert [h["head"] for h in heads] == [0, 1, 2, 3]
    assert {h["group"] for h in heads} == {HEADS.name}
    assert {h["module"] for h in heads} == {"m"}
    assert [h["sink_mass"] for h in heads] == pytest.approx([0.8, 0.8, 0.1, 0.5])
    assert [h["energy"] for h in heads] == pytest.approx([4, 5, 1, 0])
    assert [h["energy_share"] for h in heads] == pytest.approx([0.4, 0.5, 0.1, 0])
    assert [h["fluctuation_ratio"] for h in heads] == pytest.approx([0, 0.8, 1, 0])
    assert [h["label"] for h in heads] == ["constant", "gate", "ordinary", "nop"]
    json.dumps(heads, allow_nan=False)


def test_labels_at_their_borders():
    assert label(sink_mass=0.3, fluctuation_ratio=0.1, energy_of_mean=0.01) == "constant"
    assert label(sink_mass=0.3, fluctuation_ratio=0.11, energy_of_mean=0.01) == "gate"
    assert label(sink_mass=0.29, fluctuation_ratio=0.0, energy_of_mean=1.0) == "ordinary"
    assert label(sink_mass=0.9, fluctuation_ratio=0.0, energy_of_mean=0.009) == "nop"


def test_a_bucket_that_saw_nothing_weighs_nothing():
    gathered = stats()
    site = gathered.values[HEADS.name]
    site["row_weight"] = torch.cat([site["row_weight"], torch.zeros(1)])
    site["input_sum"] = torch.cat([site["input_sum"], torch.zeros(1, 4)])
    assert head_diagnostics(WEIGHTS, [HEADS], gathered) == head_diagnostics(WEIGHTS, [HEADS], stats())


def test_heads_that_two_projections_read_are_judged_by_both():
    second = replace(HEADS.read_by, path="m.add.weight")
    joint = replace(HEADS, consumed_by=(HEADS.read_by, second))
    gathered = stats()
    found = gathered.values.pop(HEADS.name)
    of_rows = {name: found.pop(name) for name in ("row_weight", "input_sum", "input_unit_moment")}
    still = {
        **of_rows,
        "input_unit_moment": torch.ones(4, 1, 1) * 8,
        "input_sum": torch.zeros(2, 4),
    }  # energy 2
    gathered.values |= {"m": found, "m.out": of_rows, "m.add": still}
    heads = head_diagnostics({**WEIGHTS, "m.add.weight": torch.ones(1, 4)}, [joint], gathered)
    assert [h["energy"] for h in heads] == pytest.approx([6, 7, 3, 2])
    assert [h["fluctuation_ratio"] for h in heads] == pytest.approx([2 / 6, 6 / 7, 1, 1])
    del gathered.values["m.add"]["row_weight"]
    assert head_diagnostics(WEIGHTS, [joint], gathered) == []


def test_shared_keys_average_their_query_heads():
    gathered = stats()
    gathered.values[HEADS.name]["sink_mass"] = torch.tensor([[0.0, 2, 1, 1, 0, 0, 2, 0]])
    heads = head_diagnostics(WEIGHTS, [HEADS], gathered)
    assert [h["sink_mass"] for h in heads] == [0.5, 0.5, 0.0, 0.5]


@pytest.mark.parametrize("missing", sorted(DIAGNOSTIC_NEEDS))
def test_sites_that_were_not_measured_are_left_out(missing: str):
    gathered = stats()
    del gathered.values[HEADS.name][missing]
    assert head_diagnostics(WEIGHTS, [HEADS], gathered) == []
    assert head_diagnostics(WEIGHTS, [linear_group(4, 1, kind="ffn_channels")], stats()) == []


def test_a_silent_site_is_all_nop():
    gathered = stats()
    site = gathered.values[HEADS.name]
    site["input_unit_moment"], site["input_sum"] = torch.zeros(4, 1, 1), torch.zeros(2, 4)
    assert [h["label"] for h in head_diagnostics(WEIGHTS, [HEADS], gathered)] == ["nop"] * 4
